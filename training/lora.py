"""Low-rank adapters (LoRA, Hu et al., 2021), scaled by the root of their rank (rsLoRA,
Kalajdzievski, 2023), saved in the layout of PEFT.

Weights that are trained are kept in float32 and used in bfloat16, like the frozen ones beside them:
on CPUs with AMX that takes half the time of mixing the two.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from actserve_server.nla.adapters import PEFT_CONFIG, PEFT_WEIGHTS
from training.models import blocks

ALPHA = 16
_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: base(x) + alpha / sqrt(rank) * up(down(x))."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32))
        self.scale = ALPHA / math.sqrt(rank)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.base(x)
        low = functional.linear(x, self.down.to(x.dtype)).flatten(0, -2)
        up = (self.up * self.scale).to(x.dtype)
        # In one step with the sum: rows are long, and reading them is what takes the time.
        return torch.addmm(base.flatten(0, -2), low, up.T).view_as(base)


def adapt(model: PreTrainedModel, rank: int) -> list[nn.Parameter]:
    """Puts an adapter, which changes nothing yet, on every linear layer of the blocks, in place;
    returns what is to be trained.

    Raises ValueError for a model whose blocks have none.
    """
    trained: list[nn.Parameter] = []
    for parent in list(blocks(model).modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                lora = LoraLinear(layer, rank)
                setattr(parent, name, lora)
                trained += [lora.down, lora.up]
    if not trained:
        raise ValueError(f"the blocks of {type(model).__name__} have no linear layers to adapt")
    return trained


def save(model: PreTrainedModel, folder: Path, base_name: str) -> None:
    """Writes the adapters of a model, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    adapted = _adapted(model)
    tensors = {}
    for name, lora in adapted.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = lora.down.detach().bfloat16()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = lora.up.detach().bfloat16()
    save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    ranks = {lora.down.shape[0] for lora in adapted.values()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": ranks.pop(),
        "lora_alpha": ALPHA,
        "use_rslora": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted}),
    }
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that is trained, float32, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_state(model: nn.Module, path: Path) -> None:
    """Keeps everything that is trained, as it is; renamed last, so that no half of it is found."""
    beside = path.with_suffix(".part")
    save_file(state(model), beside)
    beside.rename(path)


def load_state(model: nn.Module, path: Path) -> None:
    """Takes up what `save_state` kept of the same model."""
    kept, here = load_file(path), state(model)
    if {name: each.shape for name, each in kept.items()} != {
        name: each.shape for name, each in here.items()
    }:
        raise ValueError(f"{path} is of another recipe; remove the work folder, or use another")
    for name, parameter in here.items():
        parameter.copy_(kept[name])


def _adapted(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, LoraLinear)}
