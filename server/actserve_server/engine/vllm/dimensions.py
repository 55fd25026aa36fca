"""How wide the rows of each hook point are, read off the loaded modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from actserve_server.domain.model import HookPointInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.families import Family

_NOT_ENABLED = "not enabled; start the server with it in --hook-points"
_MIXTURE = "a mixture of experts has no single activation between its projections"
_READ_ONLY = "logits are computed after the forward pass; change final_norm instead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Of the whole model, not of one tensor-parallel rank."""

    width: int
    vocabulary_size: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int | None
    """None where there is no single hidden activation."""

    @staticmethod
    def of(model: nn.Module, family: Family, config: Any, ranks: int) -> "Dimensions":
        """Of a loaded model; `config` is vLLM's ModelConfig."""
        layer = model.get_submodule(family.layers)[0]  # type: ignore[index]
        core: Any = layer.get_submodule(family.attention_core)
        output: Any = family.mlp_output and layer.get_submodule(family.mlp_output)
        return Dimensions(
            width=config.get_hidden_size(),
            vocabulary_size=config.get_vocab_size(),
            heads=core.num_heads * ranks,
            key_value_heads=config.get_total_num_kv_heads(),
            head_width=core.head_size,
            mlp_width=output.input_size if output else None,
        )

    def hook_points(self, tapped: frozenset[HookPoint]) -> Mapping[HookPoint, HookPointInfo]:
        """What every hook point is, given those with taps."""
        return {hook_point: self._hook_point(hook_point, tapped) for hook_point in HookPoint}

    def _hook_point(self, hook_point: HookPoint, tapped: frozenset[HookPoint]) -> HookPointInfo:
        source = HookPoint.FINAL_NORM if hook_point is HookPoint.LOGITS else hook_point
        unserved = "" if source in tapped else _NOT_ENABLED
        match hook_point:
            case HookPoint.Q | HookPoint.Z:
                width, heads = self.heads * self.head_width, self.heads
            case HookPoint.K | HookPoint.V:
                width, heads = self.key_value_heads * self.head_width, self.key_value_heads
            case HookPoint.MLP_ACT:
                width, heads = self.mlp_width or 0, 0
                unserved = unserved if self.mlp_width else _MIXTURE
            case HookPoint.LOGITS:
                width, heads = self.vocabulary_size, 0
            case _:
                width, heads = self.width, 0
        return HookPointInfo(
            width=width,
            heads=heads,
            unserved=unserved,
            unchangeable=_READ_ONLY if hook_point is HookPoint.LOGITS else "",
        )
