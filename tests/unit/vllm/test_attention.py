"""A model's attention is described as its modules compute it, or said to be beyond description."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from vllm.v1.attention.backend import AttentionType

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.engine.vllm.attention import describe_attention, rules
from actserve_server.engine.vllm.families import FAMILIES


class Core(nn.Module):
    """As much of vLLM's attention layer as is looked at."""

    def __init__(self, impl: dict[str, Any], **fields: Any) -> None:
        super().__init__()
        self.impl = SimpleNamespace(scale=0.25, **impl)
        self.attn_type: Any = AttentionType.DECODER
        self.sliding_window: int | None = None
        self.kv_cache_dtype = "auto"
        vars(self).update(fields)


def _model(*cores: Core) -> nn.Module:
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList()
    for core in cores:
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.attn = core
        model.model.layers.append(layer)
    return model


def _described(*cores: Core) -> dict[str, Any]:
    """As the server gets it from the worker's process."""
    found = describe_attention(_model(*cores), FAMILIES["LlamaForCausalLM"])
    return msgspec.msgpack.decode(msgspec.msgpack.encode(found))


def _fields(rule: AttentionRule) -> tuple[Any, ...]:
    return rule.heads, rule.key_value_heads, rule.head_dim, rule.scale, rule.sliding_window


def test_every_layer_has_its_own_rule() -> None:
    found = _described(
        Core({"logits_soft_cap": 0, "sinks": None}),
        Core({"logits_soft_cap": 50.0}, sliding_window=16),
        Core({"sinks": torch.tensor([0.5, -1.0], dtype=torch.bfloat16)}, attn_type="decoder"),
    )
    first, second, third = rules(found, 4, 2, 32)
    assert found["attention_unserved"] == ""
    assert _fields(first) == (4, 2, 32, 0.25, None)
    assert _fields(second) == (4, 2, 32, 0.25, 16)
    assert (first.soft_cap, second.soft_cap, third.soft_cap) == (None, 50.0, None)
    assert (first.sinks, second.sinks) == (None, None)
    assert third.sinks is not None
    assert third.sinks.dtype == np.float32
    assert third.sinks.tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("core", "reason"),
    [
        (Core({}, attn_type=AttentionType.ENCODER_ONLY), "layer 1 has attention of type"),
        (Core({}, attn_type="encoder"), "layer 1 has attention of type encoder"),
        (Core({"alibi_slopes": torch.ones(4)}), "layer 1 adds ALiBi"),
        (Core({}, kv_sharing_target_layer_name="0"), "layer 1 reads the keys of another layer"),
        (Core({}, kv_cache_dtype="fp8"), "layer 1 reads its keys as fp8"),
    ],
    ids=["bidirectional", "by name", "alibi", "shared keys", "rounded keys"],
)
def test_attention_that_cannot_be_reproduced_is_not_described(core: Core, reason: str) -> None:
    found = _described(Core({}), core)
    assert found["attention_unserved"].startswith(reason)
    assert rules(found, 4, 2, 32) == ()
