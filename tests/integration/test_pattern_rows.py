"""What the worker tells of attention is what numpy makes of the queries and keys that are fetched:
in chunks, of generated tokens, beside other runs, preempted, edited, and from the cache."""

from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.attention_patterns import pattern
from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Capture, Run
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    SiteRows,
    add,
    again,
    cached_tokens,
    greedy,
    make_run,
    started,
    vllm_counter,
)

BLOCK = 32
"""Tokens in a block of the engine's cache."""
TOKENS, HEADS, LARGEST = 8, 9, 4
LAYERS = (3, 0, 29)
QUERIES = tuple(Site(HookPoint.Q, layer) for layer in LAYERS)
KEYS = tuple(Site(HookPoint.K, layer) for layer in LAYERS)
SOME = Selection(Spans(((5, 40), (100, 101), (255, 262))))
"""Across the end of a step."""
MEASURES = QueryMeasures(HEADS, (3, 50))
LARGEST_OF = LargestWeights((7, 2), LARGEST)
CAPTURES = (
    Capture(QUERIES, ALL, MEASURES),
    Capture(QUERIES, SOME, LARGEST_OF),
    Capture(QUERIES, Selection(Spans(((0, 262),))), ReceivedWeights(HEADS, SOME.spans)),
)
EDIT = add(Site(HookPoint.RESID_POST, 1), 4 * np.sin(np.arange(576, dtype=np.float32)))


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Longer than a step may be, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 28
    ids = smollm2.tokenize(text).ids
    assert len(ids) > 262
    return ids


def run_of(prompt: tuple[int, ...], *captures: Capture) -> Run:
    return make_run(prompt, captures=captures or CAPTURES, sampling=greedy(TOKENS))


def check(smollm2: EngineThread, result: Result, rows: SiteRows, ids: np.ndarray) -> None:
    """Of the captures above, in order."""
    for query, key in zip(QUERIES, KEYS, strict=True):
        assert query.layer is not None
        rule, q, k = smollm2.info.attention[query.layer], rows[query], rows[key]
        measured, largest, received = (each.rows[query] for each in result.captures)
        expected = MEASURES.apply(rule, q, k, np.arange(len(ids)), ids)
        np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=1e-3)
        at = SOME.spans.within(0, len(ids))
        for head, found in zip(LARGEST_OF.heads, LARGEST_OF.split(largest), strict=True):
            weights = pattern(rule, q[at], k, head, at)
            best = -np.sort(-weights, axis=1)[:, :LARGEST]
            np.testing.assert_allclose(found.weights, best, atol=1e-3)
            there = np.take_along_axis(weights, found.keys, axis=1)
            np.testing.assert_allclose(there, best, atol=1e-3)
        sums = ReceivedWeights(HEADS, SOME.spans).apply(rule, q[:262], k[:262])
        np.testing.assert_allclose(received, sums, rtol=1e-3, atol=1e-3)


def fetched(smollm2: EngineThread, run: Run, result: Result) -> tuple[SiteRows, np.ndarray]:
    """Queries and keys of the same tokens, and these."""
    ids = (*run.token_ids, *result.token_ids[:-1])
    plain = replace(again(run), token_ids=ids, captures=(Capture((*QUERIES, *KEYS), ALL),))
    plain = replace(plain, sampling=greedy(1), computes_all=True)
    return smollm2.run(plain).rows, np.array(ids)


def test_in_chunks_and_of_generated_tokens(smollm2: EngineThread, prompt: tuple[int, ...]) -> None:
    run = run_of(prompt, *CAPTURES, Capture((*QUERIES, *KEYS), ALL))
    result = smollm2.run(run)
    ids = np.array([*prompt, *result.token_ids[:-1]])
    assert [each.positions for each in result.captures[:3]] == [
        [*range(len(ids))],
        SOME.spans.within(0, len(ids)).tolist(),
        [*range(262)],
    ]
    rows = result.captures[3].rows
    check(smollm2, replace(result, captures=result.captures[:3]), rows, ids)


def test_preempted_and_beside_many_others_each_run_has_its_own(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    before = vllm_counter("vllm:num_preemptions_total")
    runs = [run_of(prompt[number:]) for number in range(5)]
    runs[3] = replace(runs[3], interventions=(EDIT,))
    plain = [make_run(prompt[9 + number :], sampling=greedy(60)) for number in range(4)]
    results = smollm2.run_all([*plain[:2], *runs, *plain[2:]])[2:7]
    assert vllm_counter("vllm:num_preemptions_total") > before
    for run, result in zip(runs, results, strict=True):
        check(smollm2, result, *fetched(smollm2, run, result))


def test_cached_blocks_are_read_where_their_rows_are_there_and_keys_are_not_needed(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    smollm2.forget()
    few = replace(CAPTURES[0], selection=Selection(Spans(((3, 2 * BLOCK),))))
    found: list[tuple[Result, int]] = []
    for capture in (few, few, CAPTURES[0]):
        before = cached_tokens()
        found.append((smollm2.run(run_of(prompt, capture)), cached_tokens() - before))
    assert [cached for _, cached in found] == [0, (len(prompt) - 1) // BLOCK * BLOCK, 0]
    (first, _), (second, _), (whole, _) = found
    for query in QUERIES:
        assert np.array_equal(first.rows[query], second.rows[query])
        part = whole.rows[query][3 : 2 * BLOCK]
        np.testing.assert_allclose(part, first.rows[query], rtol=1e-3, atol=1e-3)


def test_what_another_tenant_steers_and_cancels_changes_no_number(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    own = replace(run_of(prompt), tenant="acme")
    steered = replace(own, tenant="other", interventions=(EDIT,))
    smollm2.forget()
    for _ in range(2):  # The second time the caches hold what each has left.
        smollm2.call(started(smollm2.engine, replace(again(steered), sampling=greedy(40))))
        first, other, second = smollm2.run_all([again(own), again(steered), again(own)])
        last = QUERIES[-1]
        assert not np.allclose(first.captures[0].rows[last], other.captures[0].rows[last])
        for result in (first, second):
            check(smollm2, result, *fetched(smollm2, own, result))
