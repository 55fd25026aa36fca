"""Which quantized checkpoints are served, on which processor, and why others are not.

Rows of a quantized model are what vLLM's own kernels compute, whose inputs and outputs are plain
numbers; taps know nothing of them. Refused is what vLLM 0.32 has no kernel for on this processor,
what it computes wrongly there, and what would make a row depend on others in its step. What reads
weights itself says by itself what it cannot read (`worker_weights.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.kernels.linear.scaled_mm.humming import HummingFP8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.marlin import MarlinFP8ScaledMMLinearKernel
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.platforms import current_platform

from actserve_server.engine.vllm import processor

_PLAIN_INPUTS = (MarlinFP8ScaledMMLinearKernel, HummingFP8ScaledMMLinearKernel)
"""Kernels that quantize weights alone, whatever their configuration says of inputs."""


def check_quantized(config: VllmConfig) -> None:
    """Raises ValueError for a checkpoint that vLLM cannot compute here, by its configuration."""
    if config.quant_config is None or not current_platform.is_cpu():
        return
    if why := unserved_on_cpu(config.quant_config, torch.cpu.get_capabilities()):
        name = config.model_config.quantization
        raise ValueError(
            f"its weights are quantized ({name}), and {why}; give a checkpoint in another form, or "
            "serve it on a GPU"
        )


def unserved_on_cpu(quantization: Any, has: Mapping[str, Any]) -> str:
    """Why a CPU with these capabilities, as torch tells them, does not serve it; empty if it
    does."""
    for weights, inputs in _bits(quantization):
        if (weights, inputs) not in {(4, 16), (8, 8)}:
            what = "in FP8 or in a form of its own" if weights is None else f"of {weights} bits"
            given = "as they are" if inputs == 16 else f"of {inputs} bits"
            return (
                "CPUs serve integers of 4 bits with inputs as they are and of 8 bits with inputs "
                f"of 8, not weights {what}" + ("" if weights is None else f" with inputs {given}")
            )
        if has["architecture"] != "x86_64":
            continue
        if weights == 4 and not has.get("avx512_f"):
            return f"vLLM multiplies 4 bits with AVX-512, which {processor.name()} does not have"
        if weights == 8 and not (has.get("avx512_vnni") or has.get("avx_vnni")):
            # Without it, sums of two products are cut at 16 bits: rows were wrong by a third.
            return (
                f"8 bits are multiplied exactly with VNNI, which {processor.name()} does not have"
            )
    return ""


def _bits(quantization: Any) -> Iterable[tuple[int | None, int | None]]:
    """Of weights and inputs, wherever it has any; of weights None where they are no integers."""
    if isinstance(quantization, AutoAWQConfig | AutoGPTQConfig):
        return [(quantization.weight_bits, 16)]
    if isinstance(quantization, CompressedTensorsConfig):
        schemes = quantization.target_scheme_map.values()
        return [(_integer_bits(each["weights"]), _input_bits(each)) for each in schemes]
    return [(None, None)]


def _integer_bits(arguments: Any) -> int | None:
    return arguments.num_bits if arguments is not None and arguments.type == "int" else None


def _input_bits(scheme: Any) -> int | None:
    inputs = scheme.get("input_activations")
    return 16 if inputs is None else _integer_bits(inputs)


def check_rows_alone(model: nn.Module) -> None:
    """Raises ValueError if a row of the loaded model would depend on others in its step: where
    inputs are quantized by one scale for all tokens of the step, and it is not a part of the
    checkpoint."""
    for path, module in model.named_modules():
        if any(map(_shares_scale, _quantizers(module))):
            raise ValueError(
                f"{path} quantizes its inputs by one scale for all tokens of a step, so that a row "
                "would depend on what others ask; give a checkpoint with a scale for each token, "
                "or with scales of its own"
            )


def _quantizers(module: nn.Module) -> Iterator[Any]:
    """Whatever of a layer says how its inputs are quantized."""
    for holder in (getattr(module, "quant_method", None), getattr(module, "scheme", None)):
        for name in ("fp8_linear", "kernel", "moe_quant_config"):
            if (found := getattr(holder, name, None)) is not None:
                yield found


def _shares_scale(quantizer: Any) -> bool:
    if isinstance(quantizer, _PLAIN_INPUTS):
        return False
    key = getattr(getattr(quantizer, "config", None), "activation_quant_key", None)
    if key is not None:
        return not key.scale.static and key.scale.group_shape.is_per_tensor()
    # Of experts; smaller types than 8 bits have a scale for each few numbers.
    return (
        getattr(quantizer, "quant_dtype", None) in (torch.float8_e4m3fn, torch.int8)
        and not quantizer.per_act_token_quant
        and quantizer.block_shape is None
        and quantizer.a1_scale is None
    )
