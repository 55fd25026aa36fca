"""What is guessed ahead, for whom, and that nothing of a rejected token is sent."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.config import SpeculativeConfig, VllmConfig
from vllm.sampling_params import StructuredOutputsParams

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add
from actserve_server.domain.probes import Aggregator, Probe, ScoreReduction
from actserve_server.domain.runs import NEUTRAL, Placement, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.sampling import sampling_params
from actserve_server.engine.vllm.speculation import (
    GUESSED_ARG,
    check_speculation,
    guessing,
    is_greedy,
    may_guess,
    speculative_config,
)
from tests.unit.vllm.steps import change, make_run, read
from tests.unit.vllm.toys import WIDTH

VECTOR = np.ones(WIDTH, np.float32)
GREEDY = replace(NEUTRAL, temperature=0.0, max_tokens=9)


def _config(
    speculative: SpeculativeConfig | None = None, *, ranks: int = 1, asynchronous: bool = False
) -> VllmConfig:
    """As much of vLLM's configuration as is looked at."""
    told = SimpleNamespace(
        speculative_config=speculative,
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
        scheduler_config=SimpleNamespace(async_scheduling=asynchronous),
    )
    return cast(VllmConfig, told)


NGRAM = SpeculativeConfig(**speculative_config(3))


@pytest.mark.parametrize(
    ("config", "asked", "adapters", "why"),
    [
        (_config(), False, True, ""),
        (_config(NGRAM), True, False, ""),
        # vLLM turns it on by itself for a checkpoint that is a speculator and names its model.
        (_config(NGRAM), False, False, "without its speculator"),
        (_config(SimpleNamespace(method="eagle")), True, False, "from n-grams alone"),  # type: ignore[arg-type]
        (_config(NGRAM, ranks=2), True, False, "with a tensor_parallel_size of 2"),
        (_config(NGRAM), True, True, "with LoRA adapters"),
        (_config(NGRAM, asynchronous=True), True, False, "with asynchronous scheduling"),
    ],
)
def test_speculation_that_is_not_proven_is_refused(
    config: VllmConfig, asked: bool, adapters: bool, why: str
) -> None:
    if not why:
        check_speculation(config, asked=asked, adapters=adapters)
        return
    with pytest.raises(ValueError, match=why):
        check_speculation(config, asked=asked, adapters=adapters)


def _guessed(run: Run, sampling: Sampling = GREEDY) -> bool:
    params = sampling_params(sampling, {}, extra_args=None, skip_reading_prefix_cache=False)
    return is_greedy(params) and may_guess(run, wire.taps_of(run, 1))


def _when(aggregator: Aggregator) -> Run:
    probe = Probe(Site(HookPoint.EMBEDDING), VECTOR)
    condition = Condition(probe, aggregator, above=0.0)
    return make_run(replace(change(Add(VECTOR), "resid_post.0"), when=condition))


@pytest.mark.parametrize(
    ("run", "guessed"),
    [
        (make_run(), True),
        (make_run(read("resid_post.0", "logits"), change(Add(VECTOR), "resid_post.0")), True),
        (_when(Aggregator()), True),
        # What a score remembers cannot be taken back.
        (_when(Aggregator(reduction=ScoreReduction.MAX)), False),
        # What a monitor may end at any token.
        (replace(make_run(), rows_at_once=True), False),
        (replace(make_run(), replayed=(3,)), False),
        (replace(make_run(), placements=(Placement(0, VECTOR),)), False),
    ],
)
def test_only_runs_of_which_nothing_depends_on_the_tokens_of_a_step_are_guessed(
    run: Run, guessed: bool
) -> None:
    run = replace(run, sampling=replace(run.sampling, max_tokens=9))
    assert _guessed(run) == guessed


@pytest.mark.parametrize(
    ("changes", "guessed"),
    [
        ({}, True),
        ({"logprobs": 3, "stop": ("a",), "stop_token_ids": (4,), "ignore_eos": True}, True),
        ({"seed": 3, "skip_special_tokens": False, "include_stop": True}, True),
        ({"temperature": 1.0}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"bad_words": ((1, 2),)}, False),
        ({"allowed_token_ids": (1, 2)}, False),
        ({"min_tokens": 2}, False),
        ({"logit_bias": ((1, 2.0),)}, False),
    ],
)
def test_only_greedy_runs_of_plain_logits_are_guessed(
    changes: dict[str, Any], guessed: bool
) -> None:
    assert _guessed(make_run(), replace(GREEDY, **changes)) == guessed


def test_what_vllm_comes_to_know_and_this_server_does_not_is_not_guessed() -> None:
    params = SamplingParams(temperature=0, structured_outputs=StructuredOutputsParams(choice=["a"]))
    assert not is_greedy(params)


def test_a_request_says_whether_it_is_guessed_and_else_forbids_it_beside_it() -> None:
    def request(extra: dict[str, Any] | None) -> Any:
        return SimpleNamespace(sampling_params=SamplingParams(extra_args=extra))

    assert guessing(request({GUESSED_ARG: True})) is True
    assert guessing(request({GUESSED_ARG: False})) is False
    assert guessing(request({})) is None
    assert guessing(request(None)) is None
    assert guessing(SimpleNamespace(sampling_params=None)) is None  # type: ignore[arg-type]
