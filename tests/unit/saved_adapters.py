"""LoRA adapters as PEFT saves them, of no model in particular."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from actserve_server.models.lora_sources import LoraSource

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
Q = "model.layers.0.self_attn.q_proj"


def saved(
    folder: Path, *modules: str, rank: int = 4, value: float = 1.0, **changes: Any
) -> LoraSource:
    """An adapter of these modules, of which each has 6 inputs and 8 outputs."""
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    tensors = {}
    for module in modules or (Q,):
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.full((rank, 6), value)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(8, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    return LoraSource(id="a", source=str(folder))
