"""Attention patterns are offered only where they explain what the model did with them."""

import asyncio
from dataclasses import replace

import pytest

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.readout_selftest import prove_attention
from tests.unit.tiny_engine import HEADS, RULE, TinyEngine


def proven(engine: TinyEngine, *rules: AttentionRule, **changes: object) -> ModelInfo:
    info = replace(engine.info, attention=rules or (RULE,) * engine.info.layer_count, **changes)
    return asyncio.run(prove_attention(engine, info))


@pytest.mark.parametrize("element_type", ElementType)
def test_the_right_rule_is_offered(element_type: ElementType) -> None:
    info = proven(TinyEngine(element_type=element_type))
    assert not info.attention_unserved
    assert len(info.attention) == info.layer_count


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 1.0},
        {"sliding_window": 16},
        {"soft_cap": 0.5},
        {"heads": HEADS, "key_value_heads": HEADS // 2, "scale": 0.0},
    ],
    ids=str,
)
def test_a_wrong_rule_in_one_layer_withdraws_all_patterns(wrong: dict[str, float]) -> None:
    info = proven(TinyEngine(), RULE, RULE, replace(RULE, **wrong))
    assert info.attention == ()
    assert "in layer 2, recomputed patterns miss z" in info.attention_unserved


def test_patterns_need_what_proves_them() -> None:
    engine = TinyEngine()
    points = dict(engine.info.hook_points)
    points[HookPoint.V] = replace(points[HookPoint.V], unserved="not enabled")
    info = proven(engine, hook_points=points)
    assert info.attention_unserved == "it takes v to prove them, not all served"


def test_what_the_engine_withholds_stays_withheld() -> None:
    info = proven(TinyEngine(), attention_unserved="layer 0 adds ALiBi biases to its scores")
    assert info.attention_unserved == "layer 0 adds ALiBi biases to its scores"
