"""The prefix cache neither hides rows from a capture nor carries an edit to another run."""

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    add,
    again,
    at,
    greedy,
    make_run,
    relative_errors,
)

SITE = Site(HookPoint.RESID_POST, 10)
VECTOR = np.random.default_rng(3).normal(size=576).astype(np.float32) * 4
GREEDY = greedy(12)


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Several blocks long, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 12
    return smollm2.tokenize(text).ids


def _cached_tokens() -> int:
    return sum(
        int(sample.value)
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:prefix_cache_hits_total"
    )


def test_a_capture_after_a_cached_prompt_has_every_row(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    fresh = smollm2.run(make_run(prompt, sites=[SITE], sampling=GREEDY))
    smollm2.run(make_run(prompt, sampling=GREEDY))
    second = smollm2.run(make_run(prompt, sites=[SITE], sampling=GREEDY))
    assert second.positions == list(range(len(prompt) + len(second.token_ids) - 1))
    assert relative_errors(second.rows[SITE], fresh.rows[SITE]).max() <= 1e-3


def test_a_capture_of_the_last_position_alone_may_use_the_cache(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    last = at(len(prompt) - 1)
    fresh = smollm2.run(make_run(prompt, sites=[SITE], at=last, sampling=GREEDY))
    before = _cached_tokens()
    second = smollm2.run(make_run(prompt, sites=[SITE], at=last, sampling=GREEDY))
    assert _cached_tokens() > before
    assert second.positions == [len(prompt) - 1]
    assert relative_errors(second.rows[SITE], fresh.rows[SITE]).max() <= 1e-3


def test_a_steered_run_poisons_no_later_one(smollm2: EngineThread, prompt: tuple[int, ...]) -> None:
    steering, against = add(SITE, VECTOR), add(SITE, -VECTOR)
    steered = smollm2.run(make_run(prompt, steering, sampling=GREEDY))
    plain = smollm2.run(make_run(prompt, sampling=GREEDY))
    captured = smollm2.run(make_run(prompt, sites=[SITE], sampling=GREEDY))
    opposite = smollm2.run(make_run(prompt, against, sampling=GREEDY))
    assert plain.token_ids == captured.token_ids
    assert steered.token_ids not in (plain.token_ids, opposite.token_ids)

    after_plain = smollm2.run(make_run(prompt, steering, sampling=GREEDY))
    assert after_plain.token_ids == steered.token_ids


def test_equal_steering_shares_the_cache_and_says_so(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    steering = add(SITE, VECTOR)
    first = smollm2.run(make_run(prompt, steering, sampling=GREEDY))
    before = _cached_tokens()
    second = smollm2.run(make_run(prompt, steering, sampling=GREEDY))
    cached = _cached_tokens() - before
    assert cached > 0
    assert second.token_ids == first.token_ids
    (fresh,), (shared,) = first.interventions, second.interventions
    assert fresh.rows == fresh.changed_rows == len(prompt) + 11
    assert (shared.rows, shared.reused_rows) == (fresh.rows, cached)
    assert shared.changed_rows == fresh.rows - cached


@pytest.mark.parametrize("steering", [(), (add(SITE, VECTOR),)], ids=["plain", "steered"])
def test_a_tenant_reuses_what_it_ran_itself_and_nothing_of_another(
    smollm2: EngineThread, prompt: tuple[int, ...], steering: tuple[Intervention, ...]
) -> None:
    run = make_run(prompt, *steering, sampling=GREEDY)
    found, cached = [], []
    for tenant in ("vision", "language", "vision"):
        before = _cached_tokens()
        found.append(smollm2.run(replace(again(run), tenant=tenant)))
        cached.append(_cached_tokens() - before)
    assert cached[:2] == [0, 0]
    assert cached[2] > 0
    # Whoever asks, the numbers are the same.
    assert found[0].token_ids == found[1].token_ids == found[2].token_ids
    for result, reused in zip(found, cached, strict=True):
        assert [report.reused_rows for report in result.interventions] == [reused] * len(steering)
