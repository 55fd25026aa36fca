"""LoRA adapters (Hu et al., 2021) as changes of a model's weights.

Read from safetensors alone, in the two layouts that checkpoints come in: PEFT's, and that of
EasyNLA's reconstructors (`nla/train_sft.py` of asherps/EasyNLA). An adapter with more to it than
two matrices a weight is refused, since what it means is for PEFT to say.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from actserve_server.models.peft_files import PEFT_CONFIG, PEFT_WEIGHTS
from actserve_server.nla.sidecar import AR_META, read_json

EASYNLA_WEIGHTS = "ar_lora_value_head.safetensors"

_PLAIN = {
    "bias": ("none",),
    # Others begin with a changed base, which the adapter is relative to.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Values that settings may have without further meaning for merging."""
_UNSET = (
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)
_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What is added to one weight: scale * up @ down."""

    down: torch.Tensor
    """[rank, in]."""
    up: torch.Tensor
    """[out, rank]."""
    scale: float
    transposed: bool = False
    """Whether the weight is stored as [in, out], as GPT-2's are."""

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Computed in float32, and rounded once to the weight's own type."""
        change = (self.up.float() @ self.down.float()) * self.scale
        change = change.T if self.transposed else change
        if change.shape != weight.shape:
            raise ValueError(
                f"an adapter's change has shape {tuple(change.shape)}, but the base's weight "
                f"{tuple(weight.shape)}; give the base that the adapter was trained on"
            )
        return (weight.float() + change).to(weight.dtype)


def read_peft(folder: Path) -> dict[str, LowRank]:
    """The changes of an adapter that PEFT saved, by the names of the base's weights."""
    path = folder / PEFT_CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {config.get('peft_type')!r}, but must be 'LORA'")
    for key in _UNSET:
        if config.get(key):
            raise ValueError(f"{path}: {key} is {config[key]!r:.100}, which is not served")
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise ValueError(f"{path}: {key} is {config[key]!r}, which is not served")
    if not (folder / PEFT_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {PEFT_WEIGHTS}; other formats are not read, convert it")
    return _changes(
        load_file(folder / PEFT_WEIGHTS),
        folder / PEFT_WEIGHTS,
        prefix="base_model.model.",
        alpha=_number(config, "lora_alpha", path),
        rank_stabilized=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
    )


def read_easynla(folder: Path) -> tuple[dict[str, LowRank], dict[str, torch.Tensor]]:
    """The changes of one of EasyNLA's reconstructors, and what else its file holds: the head."""
    path = folder / EASYNLA_WEIGHTS
    tensors = load_file(path)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("value_head.")}
    meta = folder / AR_META
    changes = _changes(
        tensors,
        path,
        prefix="backbone.",
        alpha=_number(read_json(meta), "lora_alpha", meta),
        rank_stabilized=True,  # Not in any file; the project's code has no other.
    )
    return changes, head


def _changes(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    *,
    prefix: str,
    alpha: float,
    rank_stabilized: bool,
    transposed: bool = False,
) -> dict[str, LowRank]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match is None or not name.startswith(prefix) or tensor.ndim != 2:
            raise ValueError(
                f"{path}: {name!r} {tuple(tensor.shape)} is no matrix of a LoRA of linear layers"
            )
        parts.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
    changes: dict[str, LowRank] = {}
    for name, matrices in parts.items():
        if len(matrices) < 2 or matrices["A"].shape[0] != matrices["B"].shape[1]:
            raise ValueError(f"{path}: the two matrices for {name!r} do not belong together")
        rank = matrices["A"].shape[0]
        # rsLoRA (Kalajdzievski, 2023) divides by the root of the rank.
        scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
        changes[name] = LowRank(matrices["A"], matrices["B"], scale, transposed)
    if not changes:
        raise ValueError(f"{path} holds no LoRA")
    return changes


def _number(config: Mapping[str, Any], key: str, path: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {key} is {value!r}, but must be a number")
    return float(value)
