"""The prefix cache neither hides rows from a capture nor carries an edit to another run."""

import numpy as np
import pytest

from actserve_server.domain.positions import Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Add, Capture, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import ALL, EngineThread, relative_errors

SITE = Site(HookPoint.RESID_POST, 10)
VECTOR = np.random.default_rng(3).normal(size=576).astype(np.float32) * 4
GREEDY = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Several blocks long, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 12
    return smollm2.call(smollm2.engine.tokenize(TextPrompt(text))).ids


def _cached_tokens(engine: EngineThread) -> int:
    from prometheus_client import REGISTRY

    return sum(
        int(sample.value)
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:prefix_cache_hits_total"
    )


def _run(name: str, ids: tuple[int, ...], *adds: Add, capture: Capture | None = None) -> Run:
    return Run(id=name, token_ids=ids, sampling=GREEDY, interventions=adds, capture=capture)


def test_a_capture_after_a_cached_prompt_has_every_row(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    capture = Capture((SITE,), ALL)
    fresh = smollm2.run(_run("cache-1", prompt, capture=capture))
    smollm2.run(_run("cache-2", prompt))
    again = smollm2.run(_run("cache-3", prompt, capture=capture))
    assert again.positions == list(range(len(prompt) + len(again.token_ids) - 1))
    assert relative_errors(again.rows[SITE], fresh.rows[SITE]).max() <= 1e-3


def test_a_capture_of_the_last_position_alone_may_use_the_cache(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    last = Spans.of([len(prompt) - 1])
    fresh = smollm2.run(_run("last-1", prompt, capture=Capture((SITE,), last)))
    before = _cached_tokens(smollm2)
    again = smollm2.run(_run("last-2", prompt, capture=Capture((SITE,), last)))
    assert _cached_tokens(smollm2) > before
    assert again.positions == [len(prompt) - 1]
    assert relative_errors(again.rows[SITE], fresh.rows[SITE]).max() <= 1e-3


def test_a_steered_run_poisons_no_later_one(smollm2: EngineThread, prompt: tuple[int, ...]) -> None:
    add = Add(SITE, ALL, VECTOR)
    steered = smollm2.run(_run("poison-steered", prompt, add))
    plain = smollm2.run(_run("poison-plain", prompt))
    captured = smollm2.run(_run("poison-captured", prompt, capture=Capture((SITE,), ALL)))
    opposite = smollm2.run(_run("poison-opposite", prompt, Add(SITE, ALL, -VECTOR)))
    assert plain.token_ids == captured.token_ids
    assert steered.token_ids not in (plain.token_ids, opposite.token_ids)

    after_plain = smollm2.run(_run("poison-steered-again", prompt, add))
    assert after_plain.token_ids == steered.token_ids


def test_equal_steering_shares_the_cache_and_gives_the_same_tokens(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    add = Add(SITE, ALL, VECTOR)
    first = smollm2.run(_run("share-1", prompt, add))
    before = _cached_tokens(smollm2)
    second = smollm2.run(_run("share-2", prompt, add))
    assert _cached_tokens(smollm2) > before
    assert second.token_ids == first.token_ids
