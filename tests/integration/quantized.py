"""Small quantized checkpoints, in the formats that people load, and what their numbers stand for.

Each is written from a checkpoint of `families.py` by the format's own definition, matrix by matrix;
beside it lies one in float32 with the values that the quantized matrices stand for.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GROUP = 32
"""Inputs that share a scale, in the formats of four bits."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours lies in each half byte of a word, lowest first."""
_E4M3_MAX = 448.0

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    dtype: str
    """What a model of this format computes in."""
    config: Mapping[str, Any]
    """What `quantization_config` says."""
    quantize: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    """Of a matrix [outputs, inputs], what the checkpoint has in its place, and the values that this
    stands for."""
    rounds_inputs: bool = False
    """Whether each token's inputs of a product are rounded to 127 steps up to their largest."""


def write(form: Format, plain: Path, folder: Path) -> tuple[Path, Path]:
    """The quantized checkpoint, and the one with its values in float32."""
    quantized, values = folder / form.name, folder / f"{form.name}-values"
    tensors = load_file(plain / "model.safetensors")
    written: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "_proj.weight" not in name:
            written[name] = tensor.to(getattr(torch, form.dtype))
            tensors[name] = written[name].float()
            continue
        parts, tensors[name] = form.quantize(tensor)
        base = name.removesuffix("weight")
        written |= {base + part: value.contiguous() for part, value in parts.items()}
    for path, of, told in (
        (quantized, written, {"quantization_config": form.config}),
        (values, tensors, {}),
    ):
        shutil.copytree(plain, path, dirs_exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in of.items()},
            path / "model.safetensors",
            {"format": "pt"},
        )
        config = json.loads((plain / "config.json").read_text()) | told
        (path / "config.json").write_text(json.dumps(config))
    return quantized, values


def _groups(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(len(weight), -1, GROUP)


def _packed(
    values: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))
) -> torch.Tensor:
    """Eight numbers below 16 along `dim` in a word of 32 bits."""
    eights = values.to(torch.int64).unflatten(dim, (-1, 8)).movedim(dim + 1 if dim >= 0 else dim, 0)
    words = sum(
        (eights[which] << 4 * at for at, which in enumerate(order)),
        torch.zeros((), dtype=torch.int64),
    )
    return (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def _awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    groups = _groups(weight)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    steps = (groups / scales + zeros).round().clamp(0, 15)
    # Inputs before outputs, each word of eight outputs.
    parts = {
        "qweight": _packed(steps.flatten(1).T, 1, _AWQ_ORDER),
        "qzeros": _packed(zeros[..., 0].T, 1, _AWQ_ORDER),
        "scales": scales[..., 0].T.half(),
    }
    return parts, ((steps - zeros) * scales).flatten(1)


def _symmetric(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps of -8 to 7 and their scale, [outputs, groups, inputs of each or 1]."""
    groups = _groups(weight)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    return (groups / scales).round().clamp(-8, 7), scales


def _gptq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    steps, scales = _symmetric(weight)
    inputs = weight.shape[1]
    zeros = torch.full_like(scales[..., 0].T, 7)  # Of 8, one less, as the format has it.
    parts = {
        "qweight": _packed((steps + 8).flatten(1).T, 0),
        "qzeros": _packed(zeros, 1),
        "scales": scales[..., 0].T.half(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return parts, (steps * scales).flatten(1)


def _packed_ints(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    steps, scales = _symmetric(weight)
    parts = {
        "weight_packed": _packed((steps + 8).flatten(1), 1),
        "weight_scale": scales[..., 0].half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return parts, (steps * scales).flatten(1)


def _bytes(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    steps = (weight / scales).round()
    return {"weight": steps.to(torch.int8), "weight_scale": scales}, steps * scales


def _fp8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().amax() / _E4M3_MAX
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def _compressed(
    layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


_INT = {"type": "int", "symmetric": True, "dynamic": False}
AWQ = Format(
    "awq",
    "float16",
    {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    _awq,
)
GPTQ = Format(
    "gptq",
    "float16",
    {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    _gptq,
)
W4A16 = Format(
    "w4a16",
    "float16",
    _compressed(
        "pack-quantized", {**_INT, "num_bits": 4, "strategy": "group", "group_size": GROUP}, None
    ),
    _packed_ints,
)
W8A8 = Format(
    "w8a8",
    "float32",
    _compressed(
        "int-quantized",
        {**_INT, "num_bits": 8, "strategy": "channel"},
        {**_INT, "num_bits": 8, "strategy": "token", "dynamic": True},
    ),
    _bytes,
    rounds_inputs=True,
)
FP8 = Format("fp8", "bfloat16", {"quant_method": "fp8", "activation_scheme": "dynamic"}, _fp8)

FORMATS = (AWQ, GPTQ, W4A16, W8A8)
"""Those that vLLM's build for CPUs runs."""
