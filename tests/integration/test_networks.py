"""What networks of probes give beside the model is what numpy makes of the rows that are fetched.

In chunks, beside other runs, preempted, after edits, from the cache: the numbers of a token are
those of its rows and of nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Selection, Spans
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
from tests.unit.networks import network, outputs_of, reading

BLOCK = 32
"""Tokens in a block of the engine's cache."""
TOKENS = 12
TOLERANCE = 1e-3
"""Relative to the largest number of a network."""
EARLY, STREAM = Site(HookPoint.RESID_POST, 4), Site(HookPoint.RESID_POST, 15)
BRANCH, HEADS, NORM = Site(HookPoint.MLP_OUT, 20), Site(HookPoint.Z, 9), Site(HookPoint.FINAL_NORM)
WIDE, KEYS = Site(HookPoint.MLP_ACT, 11), Site(HookPoint.K, 7)

EDITED = Site(HookPoint.RESID_POST, 2)
VECTOR = np.random.default_rng(3).normal(size=576).astype(np.float32) * 4


@pytest.fixture(scope="module")
def captures(smollm2: EngineThread) -> Mapping[str, Capture]:
    """Of networks of every kind, by name."""

    def of(*sites: Site) -> dict[Site, int]:
        return {site: smollm2.info.at(site).width for site in sites}

    linear = [network(of(STREAM), seed=seed) for seed in range(32)]
    every = {
        "32 linear ones": linear,
        "linear, of several sites": [network(of(NORM, KEYS, WIDE, EARLY), seed=1)],
        "MLP": [network(of(STREAM), seed=2, units=64)],
        "MLP, of several sites": [network(of(STREAM, HEADS), seed=3, units=16)],
        "attention": [network(of(BRANCH), seed=4, heads=4, queries=True)],
        "attention of an MLP, of several sites": [
            network(of(HEADS, EARLY), seed=5, heads=10, units=24, queries=True)
        ],
    }
    every["all together"] = [each for some in every.values() for each in some]
    return {name: reading(networks) for name, networks in every.items()}


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Longer than a step may be, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 28
    ids = smollm2.tokenize(text).ids
    assert len(ids) > 256
    return ids


def _check(capture: Capture, given: np.ndarray, rows: SiteRows) -> None:
    outputs = outputs_of(capture)
    low = 0
    for each in outputs.networks:
        wanted = each.apply([rows[site] for site in each.sites])
        mine, low = given[:, low : low + each.outputs], low + each.outputs
        # Of the first token, whose rows are a hundred times the others', and of these apart.
        for part in (slice(1), slice(1, None)):
            error = np.abs(mine[part] - wanted[part]).max()
            assert error <= TOLERANCE * np.abs(wanted[part]).max()
    assert low == given.shape[1]


def _given(result: Result, number: int = 0) -> np.ndarray:
    (rows,) = result.captures[number].rows.values()
    return rows


def _run(prompt: tuple[int, ...], *captures: Capture) -> Run:
    return make_run(prompt, captures=captures, sampling=greedy(TOKENS))


def test_every_kind_gives_what_numpy_makes_of_the_rows(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    sites = {site: None for each in captures.values() for site in each.sites}
    result = smollm2.run(_run(prompt, *captures.values(), Capture(tuple(sites), ALL)))
    rows = result.captures[-1].rows
    for number, capture in enumerate(captures.values()):
        assert result.captures[number].positions == [*range(len(prompt) + TOKENS - 1)]
        _check(capture, _given(result, number), rows)


def test_preempted_and_beside_many_others_each_run_has_its_own(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    before = vllm_counter("vllm:num_preemptions_total")
    others = [
        make_run(prompt[number : number + 40], captures=[each], sampling=greedy(100))
        for number, each in zip(range(6), captures.values(), strict=False)
    ]
    runs = [_run(prompt[number:], each) for number, each in enumerate(captures.values())]
    results = smollm2.run_all([*others, *runs, *map(again, runs)])
    assert vllm_counter("vllm:num_preemptions_total") > before
    for number, (run, result) in enumerate(zip([*others, *runs, *runs], results, strict=True)):
        capture = run.captures[0]
        rows = smollm2.run(
            make_run((*run.token_ids, *result.token_ids[:-1]), sites=capture.sites)
        ).rows
        assert result.positions == [*range(len(rows[capture.sites[0]]))], number
        _check(capture, _given(result), rows)


def test_a_second_run_computes_only_the_last_block_and_has_the_numbers_of_the_first(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    capture = captures["all together"]
    smollm2.forget()
    first = smollm2.run(_run(prompt, capture))
    before = cached_tokens()
    second = smollm2.run(_run(prompt, capture))
    assert cached_tokens() - before == (len(prompt) - 1) // BLOCK * BLOCK > 6 * BLOCK
    assert second.token_ids == first.token_ids
    assert second.positions == first.positions
    cached = (len(prompt) - 1) // BLOCK * BLOCK
    assert np.array_equal(_given(second)[:cached], _given(first)[:cached])
    rows = smollm2.run(_run(prompt, Capture(capture.sites, ALL))).rows
    _check(capture, _given(second), rows)
    # Other networks find nothing.
    before = cached_tokens()
    smollm2.run(_run(prompt, captures["MLP"]))
    assert cached_tokens() == before


def test_numbers_after_an_edit_are_found_by_equal_edits_alone(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    capture = captures["all together"]
    where = Selection(Spans(((2 * BLOCK + 5, NO_END),)))
    plain = _run(prompt, capture)
    edited = replace(plain, interventions=(add(EDITED, VECTOR, selection=where),))
    smollm2.forget()
    found: list[tuple[Result, int]] = []
    for run in (plain, edited, plain, edited):
        before = cached_tokens()
        found.append((smollm2.run(again(run)), cached_tokens() - before))
    every = (len(prompt) - 1) // BLOCK * BLOCK
    assert [cached for _, cached in found] == [0, 2 * BLOCK, every, every]
    for (result, _), (second, _) in ((found[0], found[2]), (found[1], found[3])):
        assert np.array_equal(_given(result)[:every], _given(second)[:every])
    sites = Capture(capture.sites, ALL)
    for (result, _), run in zip(found[2:], (plain, edited), strict=True):
        fetched = smollm2.run(replace(again(run), captures=(sites,)))
        _check(capture, _given(result), fetched.rows)
    assert not np.array_equal(_given(found[2][0])[-1], _given(found[3][0])[-1])


def test_a_run_that_is_cancelled_leaves_right_numbers_or_none(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    run = _run(prompt, captures["all together"])
    smollm2.forget()
    for _ in range(3):
        smollm2.call(started(smollm2.engine, replace(again(run), sampling=greedy(40))))
        result = smollm2.run(again(run))
        rows = smollm2.run(_run(prompt, Capture(run.captures[0].sites, ALL))).rows
        _check(run.captures[0], _given(result), rows)
        smollm2.forget()
        assert smollm2.engine.rows.held_bytes == 0


def test_what_another_tenant_steers_and_cancels_changes_no_number(
    smollm2: EngineThread, captures: Mapping[str, Capture], prompt: tuple[int, ...]
) -> None:
    capture = captures["all together"]
    own = replace(_run(prompt, capture), tenant="acme")
    steered = replace(own, tenant="other", interventions=(add(EDITED, VECTOR),))
    smollm2.forget()
    for _ in range(2):  # The second time the caches hold what each has left.
        smollm2.call(started(smollm2.engine, replace(again(steered), sampling=greedy(40))))
        first, other, second = smollm2.run_all([again(own), again(steered), again(own)])
        assert not np.array_equal(_given(first)[-1], _given(other)[-1])
        sites = replace(again(own), captures=(Capture(capture.sites, ALL),), computes_all=True)
        rows = smollm2.run(sites).rows
        for result in (first, second):
            _check(capture, _given(result), rows)
