"""Logit attribution is offered only where it explains what the model did."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import LogitDirections, LogitTarget
from actserve_server.readouts.attribution_selftest import prove_attribution
from tests.unit.tiny_engine import TinyEngine


class Misread(TinyEngine):
    """Reads its weights wrongly."""

    def __init__(self, wrong: Callable[[LogitDirections], LogitDirections]) -> None:
        super().__init__()
        self._wrong = wrong

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        return self._wrong(await super().logit_directions(targets, layers))


def proven(engine: TinyEngine, **changes: Any) -> ModelInfo:
    info = replace(engine.info, **changes)
    return asyncio.run(prove_attribution(engine, info))


@pytest.mark.parametrize("element_type", ElementType)
def test_what_explains_the_logits_and_every_layer_is_offered(element_type: ElementType) -> None:
    engine = TinyEngine(element_type=element_type)
    assert proven(engine) == engine.info


@pytest.mark.parametrize(
    "wrong",
    [
        lambda read: replace(read, stream=read.stream * 1.1),
        lambda read: replace(read, stream=read.stream[::-1]),
        lambda read: replace(read, centered=True),
        lambda read: replace(read, constants=read.constants + 1),
        lambda read: replace(read, epsilon=1.0),
        lambda read: replace(read, soft_cap=1.0),
    ],
    ids=["gain", "tokens", "mean", "bias", "epsilon", "soft cap"],
)
def test_a_wrong_norm_or_unembedding_withdraws_it(
    wrong: Callable[[LogitDirections], LogitDirections],
) -> None:
    weights = proven(Misread(wrong)).weights
    assert "the last residual misses" in weights.attribution_unserved
    assert weights.head_attribution_unserved == weights.attribution_unserved


@pytest.mark.parametrize(
    "wrong",
    [
        lambda seen: seen[:, ::-1],
        lambda seen: seen * 1.1,
        lambda seen: seen[:, :, ::-1],
    ],
    ids=["heads", "scale", "columns"],
)
def test_a_wrong_output_projection_in_one_layer_withdraws_that_of_heads(
    wrong: Callable[[Any], Any],
) -> None:
    def in_layer_2(read: LogitDirections) -> LogitDirections:
        heads = {layer: wrong(seen) if layer == 2 else seen for layer, seen in read.heads.items()}
        return replace(read, heads=heads)

    weights = proven(Misread(in_layer_2)).weights
    assert not weights.attribution_unserved
    assert "in layer 2, the heads together miss" in weights.head_attribution_unserved


@pytest.mark.parametrize(
    ("missing", "all_of_it"),
    [
        (HookPoint.RESID_POST, True),
        (HookPoint.LOGITS, True),
        (HookPoint.Z, False),
        (HookPoint.ATTN_OUT, False),
    ],
)
def test_attribution_needs_what_proves_it(missing: HookPoint, all_of_it: bool) -> None:
    engine = TinyEngine(unserved={missing: "not enabled"})
    weights = proven(engine).weights
    assert f"{missing}" in weights.head_attribution_unserved
    assert ("to prove it" in weights.attribution_unserved) == all_of_it


def test_what_the_engine_withholds_stays_withheld() -> None:
    info = TinyEngine().info
    weights = replace(info.weights, attribution_unserved="its unembedding is quantized")
    assert proven(TinyEngine(), weights=weights).weights == weights
