"""How wide the rows of each hook point are, read off the loaded modules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from actserve_server.domain.model import HookPointInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.families import Family

_NOT_ENABLED = "not enabled; start the server with it in --hook-points"
_READ_ONLY = "logits are computed after the forward pass; change final_norm instead"


def _head_width(core: Any, attention_output: Any, heads: int) -> int:
    """Zero where nothing has heads."""
    if core:
        return core.head_size
    return attention_output.input_size // heads if attention_output else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Of the whole model, not of one tensor-parallel rank."""

    width: int
    vocabulary_size: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int
    unserved: Mapping[HookPoint, str] = field(default_factory=dict)
    """Why the family has no rows of a hook point. Widths that nothing needs are zero."""

    @staticmethod
    def of(model: nn.Module, family: Family, config: Any, ranks: int) -> "Dimensions":
        """Of a loaded model; `config` is vLLM's ModelConfig."""
        layer = model.get_submodule(family.layers)[0]  # type: ignore[index]
        core: Any = family.attention_core and layer.get_submodule(family.attention_core)
        attention: Any = family.attention_output and layer.get_submodule(family.attention_output)
        mlp: Any = family.mlp_output and layer.get_submodule(family.mlp_output)
        heads = core.num_heads * ranks if core else config.hf_text_config.num_attention_heads
        return Dimensions(
            width=config.get_hidden_size(),
            vocabulary_size=config.get_vocab_size(),
            heads=heads,
            key_value_heads=config.get_total_num_kv_heads() if core else 0,
            head_width=_head_width(core, attention, heads),
            mlp_width=mlp.input_size if mlp else 0,
            unserved=family.unserved,
        )

    def key_value_copies(self, ranks: int) -> int:
        """Of so many ranks, how many hold the same keys and values."""
        return max(1, ranks // self.key_value_heads) if self.key_value_heads else 1

    def hook_points(self, tapped: frozenset[HookPoint]) -> Mapping[HookPoint, HookPointInfo]:
        """What every hook point is, given those with taps."""
        return {hook_point: self._hook_point(hook_point, tapped) for hook_point in HookPoint}

    def _hook_point(self, hook_point: HookPoint, tapped: frozenset[HookPoint]) -> HookPointInfo:
        if reason := self.unserved.get(hook_point):
            return HookPointInfo(width=0, unserved=reason)
        source = HookPoint.FINAL_NORM if hook_point is HookPoint.LOGITS else hook_point
        unserved = "" if source in tapped else _NOT_ENABLED
        match hook_point:
            case HookPoint.Q | HookPoint.Z:
                width, heads = self.heads * self.head_width, self.heads
            case HookPoint.K | HookPoint.V:
                width, heads = self.key_value_heads * self.head_width, self.key_value_heads
            case HookPoint.MLP_ACT:
                width, heads = self.mlp_width, 0
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
