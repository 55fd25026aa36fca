"""A model's description has a width for every hook point, and a reason for what is missing."""

from types import SimpleNamespace

import pytest

from actserve_server.domain.model import HookPointInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import FAMILIES
from tests.unit.vllm.toys import (
    HEAD_WIDTH,
    HEADS,
    KEY_VALUE_HEADS,
    MLP_WIDTH,
    VOCABULARY,
    WIDTH,
    Model,
)

EVERY = frozenset(HookPoint)
CONFIG = SimpleNamespace(
    get_hidden_size=lambda: WIDTH,
    get_vocab_size=lambda: VOCABULARY,
    get_total_num_kv_heads=lambda: KEY_VALUE_HEADS,
)


def _dimensions(architecture: str = "LlamaForCausalLM", ranks: int = 1) -> Dimensions:
    return Dimensions.of(Model(architecture), FAMILIES[architecture], CONFIG, ranks)


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel"]
)
def test_every_hook_point_has_its_width_and_heads(architecture: str) -> None:
    points = _dimensions(architecture).hook_points(EVERY)
    assert set(points) == EVERY
    queries = HookPointInfo(width=HEADS * HEAD_WIDTH, heads=HEADS)
    keys = HookPointInfo(width=KEY_VALUE_HEADS * HEAD_WIDTH, heads=KEY_VALUE_HEADS)
    special = {
        HookPoint.Q: queries,
        HookPoint.Z: queries,
        HookPoint.K: keys,
        HookPoint.V: keys,
        HookPoint.MLP_ACT: HookPointInfo(width=MLP_WIDTH),
        HookPoint.LOGITS: points[HookPoint.LOGITS],
    }
    assert points == {each: special.get(each, HookPointInfo(width=WIDTH)) for each in HookPoint}


def test_logits_span_the_vocabulary_and_cannot_be_changed() -> None:
    logits = _dimensions().hook_points(EVERY)[HookPoint.LOGITS]
    assert (logits.width, logits.unserved) == (VOCABULARY, "")
    assert "change final_norm instead" in logits.unchangeable


def test_widths_are_those_of_the_whole_model_on_any_rank() -> None:
    # A rank's own attention has its share of the query heads.
    assert _dimensions(ranks=2).heads == 2 * HEADS
    assert _dimensions(ranks=2).key_value_heads == KEY_VALUE_HEADS


def test_a_mixture_of_experts_has_no_hidden_activation() -> None:
    points = _dimensions("MixtralForCausalLM").hook_points(EVERY - {HookPoint.MLP_ACT})
    assert points[HookPoint.MLP_ACT].width == 0
    assert "mixture of experts" in points[HookPoint.MLP_ACT].unserved
    assert not any(points[each].unserved for each in EVERY - {HookPoint.MLP_ACT})


def test_what_is_not_tapped_says_how_to_have_it() -> None:
    points = _dimensions().hook_points(frozenset({HookPoint.RESID_POST}))
    served = {each for each, info in points.items() if not info.unserved}
    assert served == {HookPoint.RESID_POST}
    assert "--hook-points" in points[HookPoint.MLP_ACT].unserved


def test_logits_are_served_wherever_the_final_norm_is_tapped() -> None:
    points = _dimensions().hook_points(frozenset({HookPoint.FINAL_NORM}))
    assert {each for each in points if not points[each].unserved} == {
        HookPoint.FINAL_NORM,
        HookPoint.LOGITS,
    }
