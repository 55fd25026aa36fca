"""A steered run computes what transformers computes with the same change made there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import Ablate, Add, Clamp, Mean, Zero
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Intervention, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.ask_workers import ask
from actserve_server.engine.vllm.graphs import FULL, PLAIN, STREAM
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    SiteRows,
    add,
    again,
    at,
    every_site,
    greedy,
    make_run,
    relative_errors,
)
from tests.integration.reference import Reference

PROMPT = "I walked into the cinema and the movie was"
LOGPROBS = Sampling(temperature=0.0, max_tokens=1, logprobs=20)
SITE = Site(HookPoint.RESID_POST, 12)

RNG = np.random.default_rng(7)
VECTOR = RNG.normal(size=576).astype(np.float32)
OTHER = RNG.normal(size=576).astype(np.float32)
HEAD = RNG.normal(size=64).astype(np.float32)
HIDDEN = RNG.normal(size=1536).astype(np.float32)


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


@pytest.fixture(scope="module")
def token_ids(smollm2: EngineThread) -> tuple[int, ...]:
    return smollm2.tokenize(PROMPT).ids


@pytest.fixture(scope="module")
def plain(reference: Reference, token_ids: tuple[int, ...]) -> SiteRows:
    return reference.rows(token_ids)


def _by_head(hook_point: HookPoint, *heads: int) -> Intervention:
    # Not everywhere: the same added to every key changes no attention.
    return Intervention((Site(hook_point, 5),), at(1, 4, 8), Add(HEAD, 2.0), heads)


CASES = {
    "embedding": [add(Site(HookPoint.EMBEDDING), VECTOR, 0.05)],
    "resid_pre first": [add(Site(HookPoint.RESID_PRE, 0), VECTOR, 0.05)],
    "resid_pre": [add(Site(HookPoint.RESID_PRE, 12), VECTOR, 2.0)],
    "resid_mid": [add(Site(HookPoint.RESID_MID, 12), VECTOR, 2.0)],
    "resid_post": [add(SITE, VECTOR, 2.0)],
    "resid_post last": [add(Site(HookPoint.RESID_POST, 29), VECTOR, 2.0)],
    "attn_out": [add(Site(HookPoint.ATTN_OUT, 12), VECTOR, 2.0)],
    "mlp_out": [add(Site(HookPoint.MLP_OUT, 12), VECTOR, -2.0)],
    "mlp_in": [add(Site(HookPoint.MLP_IN, 12), VECTOR, 2.0)],
    "mlp_act": [add(Site(HookPoint.MLP_ACT, 12), HIDDEN, 2.0)],
    "final_norm": [add(Site(HookPoint.FINAL_NORM), VECTOR, 2.0)],
    "queries of a head": [_by_head(HookPoint.Q, 7)],
    "keys of a head": [_by_head(HookPoint.K, 1)],
    "values of two heads": [_by_head(HookPoint.V, 0, 2)],
    "results of two heads": [_by_head(HookPoint.Z, 8, 3)],
    "one position": [add(Site(HookPoint.RESID_POST, 5), VECTOR, 4.0, at(3))],
    "several positions": [add(Site(HookPoint.RESID_POST, 5), VECTOR, 2.0, at(0, 2, 3, 7))],
    "two at one site": [
        add(Site(HookPoint.RESID_POST, 9), VECTOR, 1.5),
        add(Site(HookPoint.RESID_POST, 9), OTHER, -2.5, at(4, 5)),
    ],
    "several sites": [
        add(Site(HookPoint.ATTN_OUT, 2), VECTOR, 0.5),
        add(Site(HookPoint.RESID_MID, 9), OTHER, 1.0, at(1, 8)),
        add(Site(HookPoint.MLP_OUT, 20), OTHER, 3.0),
    ],
    "several operations": [
        Intervention((Site(HookPoint.MLP_OUT, 20),), ALL, Mean(OTHER)),
        Intervention((Site(HookPoint.Z, 20), Site(HookPoint.Z, 8)), ALL, Zero(), heads=(1, 4)),
        Intervention((SITE, Site(HookPoint.RESID_MID, 14)), at(2, 8), Ablate(VECTOR)),
        Intervention((SITE,), ALL, Clamp(OTHER, -1.0, 1.0)),
    ],
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_steered_logits_and_rows_equal_transformers_with_the_same_change(
    changes: list[Intervention],
    smollm2: EngineThread,
    reference: Reference,
    plain: SiteRows,
    token_ids: tuple[int, ...],
) -> None:
    sites = every_site(smollm2.info)
    ours = smollm2.run(make_run(token_ids, *changes, sites=sites, sampling=LOGPROBS))
    theirs = reference.rows(token_ids, reference.edits(changes, token_ids))
    logprobs = _logprobs(theirs)

    top = ours.logprobs[0].top
    ours_top = np.array([candidate.logprob for candidate in top])
    theirs_top = logprobs[[candidate.id for candidate in top]]
    assert [candidate.id for candidate in top[:5]] == np.argsort(-logprobs)[:5].tolist()
    assert np.abs(ours_top - theirs_top).max() <= 1e-3
    # The change must matter, or the comparison would prove nothing.
    assert np.abs(_logprobs(plain) - logprobs).max() > 0.05
    worst = {site: relative_errors(ours.rows[site], theirs[site]).max() for site in sites}
    assert not {site: error for site, error in worst.items() if not error <= 1e-3}


def _logprobs(rows: SiteRows) -> np.ndarray:
    logits = torch.from_numpy(rows[Site(HookPoint.LOGITS)][-1])
    return torch.log_softmax(logits, -1).numpy()


def test_captures_read_the_site_after_its_edit(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    before = Site(HookPoint.MLP_OUT, 12)
    plain = smollm2.run(make_run(token_ids, sites=[SITE, before]))
    steered = smollm2.run(make_run(token_ids, add(SITE, VECTOR, 3.0), sites=[SITE, before]))
    assert np.allclose(steered.rows[SITE], plain.rows[SITE] + 3.0 * VECTOR, atol=1e-3)
    assert np.allclose(steered.rows[before], plain.rows[before], atol=1e-3)


def test_generated_only_leaves_the_prompt_and_the_first_token_alone(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    prompt = len(token_ids)
    generated = Selection(Spans(((prompt, NO_END),)))
    steering = add(SITE, VECTOR, 20.0, generated)
    plain = smollm2.run(make_run(token_ids, sites=[SITE], sampling=greedy(6)))
    steered = smollm2.run(make_run(token_ids, steering, sites=[SITE], sampling=greedy(6)))
    assert steered.token_ids[0] == plain.token_ids[0]
    assert np.allclose(steered.rows[SITE][:prompt], plain.rows[SITE][:prompt], atol=1e-3)
    first = steered.rows[SITE][prompt] - plain.rows[SITE][prompt]
    assert np.allclose(first, 20.0 * VECTOR, atol=1e-2)


def test_a_run_has_a_row_for_every_position_but_the_last_sampled_token(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    for count in (1, 2, 9):
        result = smollm2.run(make_run(token_ids, sites=[SITE], sampling=greedy(count)))
        assert len(result.token_ids) == count
        assert result.positions == list(range(len(token_ids) + count - 1))


def test_a_stop_string_ends_rows_where_it_ends_tokens(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    free = smollm2.run(make_run(token_ids, sampling=greedy(40)))
    stop = free.text[8:14]
    stopping = Sampling(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(stop,))
    result = smollm2.run(make_run(token_ids, sites=[SITE], sampling=stopping))
    assert result.text == free.text[: free.text.index(stop)]
    assert 0 < len(result.token_ids) < 40
    assert result.positions == list(range(len(token_ids) + len(result.token_ids) - 1))


def test_with_few_taps_or_none_a_run_gets_what_it_gets_with_all(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    """Each by its own graph alone, then all in the same steps, and after many plain ones again."""
    sampling = replace(greedy(24), logprobs=5)
    deep = Site(HookPoint.MLP_IN, 12)
    runs = {
        PLAIN: make_run(token_ids, sampling=sampling),
        STREAM: make_run(token_ids, sites=[SITE], sampling=sampling),
        FULL: make_run(token_ids, sites=[SITE, deep], sampling=sampling),
    }
    steered = make_run(token_ids, add(SITE, VECTOR, 20.0), sampling=sampling)

    def alone(graph: str) -> Result:
        smollm2.forget()
        before = _graph_steps(smollm2)
        result = smollm2.run(again(runs[graph]))
        after = _graph_steps(smollm2)
        assert {name for name in after if after[name] > before[name]} == {graph}
        return result

    wanted = alone(FULL)
    results = {graph: alone(graph) for graph in (PLAIN, STREAM)}
    smollm2.forget()
    *beside, _ = smollm2.run_all([*map(again, runs.values()), steered])
    smollm2.run_all([again(runs[PLAIN]) for _ in range(20)])
    for result in (*results.values(), *beside, alone(STREAM)):
        assert result.token_ids == wanted.token_ids
        for one, other in zip(result.logprobs, wanted.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        for capture in result.captures:
            assert relative_errors(capture.rows[SITE], wanted.rows[SITE]).max() <= 1e-3


def _graph_steps(engine: EngineThread) -> dict[str, int]:
    (steps, *_) = engine.call(ask(engine.engine.vllm, "graph_steps"))
    return steps
