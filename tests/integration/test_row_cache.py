"""What was captured of a prompt is not computed again, and is what was captured."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Run, Unembed
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    Result,
    add,
    again,
    at,
    cached_tokens,
    greedy,
    make_run,
    relative_errors,
    started,
)

BLOCK = 32
"""Tokens in a block of the engine's cache."""
TOLERANCE = 1e-3
"""Relative, in float32: what the composition of a batch does to rounding."""
STREAM, LATER, HEADS = (
    Site(HookPoint.RESID_POST, 10),
    Site(HookPoint.RESID_POST, 29),
    Site(HookPoint.Z, 4),
)
EDITED = Site(HookPoint.RESID_POST, 9)
VECTOR = np.random.default_rng(3).normal(size=576).astype(np.float32) * 4
GREEDY = greedy(4)


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Several blocks long, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 12
    return smollm2.tokenize(text).ids


def _fresh(engine: EngineThread, run: Run) -> Result:
    """What a run gives that finds nothing."""
    engine.forget()
    return engine.run(again(run))


def _cached(engine: EngineThread, run: Run) -> tuple[Result, int]:
    """And one that may, with how many tokens were not computed."""
    before = cached_tokens()
    result = engine.run(again(run))
    return result, cached_tokens() - before


def _blocks(end: int) -> int:
    """The tokens of the whole blocks below a position."""
    return end // BLOCK * BLOCK


def _all_of(prompt: Sequence[int]) -> int:
    """How many tokens of a prompt need not be computed at best."""
    return _blocks(len(prompt) - 1)


def _agree(result: Result, other: Result) -> None:
    assert result.token_ids == other.token_ids
    for mine, others in zip(result.captures, other.captures, strict=True):
        assert mine.positions == others.positions
        for site, rows in mine.rows.items():
            assert relative_errors(rows, others.rows[site]).max(initial=0) <= TOLERANCE, site


def _equal_below(end: int, result: Result, other: Result) -> None:
    """Bit for bit."""
    for mine, others in zip(result.captures, other.captures, strict=True):
        below = np.array(mine.positions) < end
        for site, rows in mine.rows.items():
            assert np.array_equal(rows[below], others.rows[site][below]), site


def test_a_second_capture_computes_only_the_last_block_and_has_the_rows_of_the_first(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    run = make_run(prompt, sites=[STREAM, HEADS], sampling=GREEDY)
    first = _fresh(smollm2, run)
    second, cached = _cached(smollm2, run)
    assert cached == _all_of(prompt) > 3 * BLOCK
    assert second.positions == [*range(len(prompt) + 3)]
    _agree(second, first)
    _equal_below(cached, second, first)


def test_a_longer_prompt_with_the_same_beginning_computes_only_what_is_new(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    longer = make_run((*prompt, *range(900, 940)), sites=[STREAM, HEADS], sampling=GREEDY)
    alone = _fresh(smollm2, longer)
    first = _fresh(smollm2, make_run(prompt, sites=[STREAM, HEADS]))
    result, cached = _cached(smollm2, longer)
    assert cached == _blocks(len(prompt))
    _agree(result, alone)
    for site, rows in first.rows.items():
        assert np.array_equal(result.rows[site][:cached], rows[:cached])
    # And what was new is now known.
    assert _cached(smollm2, longer)[1] == _all_of(longer.token_ids)


def test_a_site_that_was_not_captured_has_to_be_computed_and_the_others_stay(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    one = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    two = make_run(prompt, sites=[LATER, STREAM], sampling=GREEDY)
    alone = _fresh(smollm2, two)
    first = _fresh(smollm2, one)
    more, cached = _cached(smollm2, two)
    assert cached == 0
    _agree(more, alone)
    for run in (one, two, make_run(prompt, sites=[LATER], sampling=GREEDY)):
        result, cached = _cached(smollm2, run)
        assert cached == _all_of(prompt)
        for site, rows in result.rows.items():
            assert relative_errors(rows, alone.rows[site]).max() <= TOLERANCE
    assert np.array_equal(
        _cached(smollm2, one)[0].rows[STREAM][:cached], first.rows[STREAM][:cached]
    )


def test_positions_that_nobody_wants_need_no_rows(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    few = at(BLOCK + 3, 3 * BLOCK + 5, len(prompt) - 1)
    run = make_run(prompt, sites=[STREAM], at=few, sampling=GREEDY)
    alone = _fresh(smollm2, run)
    _fresh(smollm2, make_run(prompt, sampling=GREEDY))
    first, cached = _cached(smollm2, run)
    assert cached == BLOCK
    _agree(first, alone)
    second, cached = _cached(smollm2, run)
    assert cached == _all_of(prompt)
    _agree(second, first)
    _equal_below(cached, second, first)
    # Of the same block others are wanted now.
    other = make_run(prompt, sites=[STREAM], at=at(BLOCK + 3, 3 * BLOCK + 6), sampling=GREEDY)
    _, cached = _cached(smollm2, other)
    assert cached == 3 * BLOCK
    both = make_run(prompt, sites=[STREAM], at=at(*range(3 * BLOCK + 5, 3 * BLOCK + 7)))
    assert _cached(smollm2, both)[1] == _all_of(prompt)


@pytest.mark.parametrize("place", ["last", "generated"])
def test_what_needs_no_row_before_the_last_token_reads_the_whole_prefix_cache(
    smollm2: EngineThread, prompt: tuple[int, ...], place: str
) -> None:
    last = len(prompt) - 1
    where = at(last) if place == "last" else Selection(Spans(((last + 1, NO_END),)))
    run = make_run(prompt, sites=[STREAM], at=where, sampling=GREEDY)
    alone = _fresh(smollm2, run)
    _fresh(smollm2, make_run(prompt, sampling=GREEDY))
    result, cached = _cached(smollm2, run)
    assert cached == _all_of(prompt)
    _agree(result, alone)


def test_several_captures_of_a_run_are_found_together(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    middle = Selection(Spans(((BLOCK + 1, 3 * BLOCK - 1),)))
    captures = [Capture((STREAM, LATER), at(0, 5)), Capture((STREAM,), middle)]
    run = make_run(prompt, captures=captures, sampling=GREEDY)
    first = _fresh(smollm2, run)
    second, cached = _cached(smollm2, run)
    assert cached == _all_of(prompt)
    _agree(second, first)
    _equal_below(cached, second, first)


def test_predictions_are_computed_anew_from_the_first_that_is_wanted(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    tail = Selection(Spans(((2 * BLOCK + 5, NO_END),)))
    captures = [Capture((STREAM,), at(3)), Capture((STREAM,), tail, Unembed(token_ids=(30,)))]
    run = make_run(prompt, captures=captures, sampling=GREEDY)
    first = _fresh(smollm2, run)
    second, cached = _cached(smollm2, run)
    assert cached == 2 * BLOCK
    _agree(second, first)


def test_a_tenant_finds_rows_of_its_own_and_of_no_other(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    run = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    smollm2.forget()
    found, cached = [], []
    for tenant in ("vision", "language", "", "vision"):
        result, count = _cached(smollm2, replace(run, tenant=tenant))
        found.append(result)
        cached.append(count)
    assert cached == [0, 0, 0, _all_of(prompt)]
    for result in found[1:]:
        _agree(result, found[0])
    _equal_below(cached[-1], found[-1], found[0])


def test_edited_rows_are_found_by_equal_edits_alone_and_plain_ones_before_them_by_all(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    first_edited = 2 * BLOCK + 5
    where = Selection(Spans(((first_edited, NO_END),)))
    plain = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    one, other = (
        make_run(prompt, add(EDITED, each, selection=where), sites=[STREAM], sampling=GREEDY)
        for each in (VECTOR, -VECTOR)
    )
    alone = [_fresh(smollm2, run) for run in (plain, one, other)]
    smollm2.forget()
    found = [_cached(smollm2, run) for run in (plain, one, other)]
    assert [cached for _, cached in found] == [0, 2 * BLOCK, 2 * BLOCK]
    again_found = [_cached(smollm2, run) for run in (plain, one, other)]
    assert [cached for _, cached in again_found] == [_all_of(prompt)] * 3
    for (result, _), (second, cached), expected in zip(found, again_found, alone, strict=True):
        _agree(result, expected)
        _agree(second, expected)
        _equal_below(cached, second, result)
    # Equal before the edit, to the last bit, since it was computed once.
    for result, _ in found[1:]:
        _equal_below(2 * BLOCK, result, found[0][0])
        assert relative_errors(result.rows[STREAM], alone[0].rows[STREAM])[first_edited:].min() > 0
    (report,), (expected,) = again_found[1][0].interventions, alone[1].interventions
    assert report.rows == expected.rows
    assert report.reused_rows == _all_of(prompt) - first_edited


def test_rows_whose_keys_and_values_are_gone_are_found_all_the_same(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    run = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    first = _fresh(smollm2, run)
    assert smollm2.call(smollm2.engine.vllm.reset_prefix_cache())
    second, cached = _cached(smollm2, run)
    assert cached == 0
    _agree(second, first)
    _equal_below(_all_of(prompt), second, first)


def test_what_there_is_no_room_for_is_computed_again(
    smollm2: EngineThread, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    row = 4 * smollm2.info.width
    smollm2.forget()
    monkeypatch.setattr(smollm2.engine.rows, "max_bytes", 2 * (BLOCK + 1) * row)
    first, _ = _cached(smollm2, run)
    second, cached = _cached(smollm2, run)
    assert cached == 2 * BLOCK
    assert smollm2.engine.rows.held_bytes <= 2 * (BLOCK + 1) * row
    _agree(second, first)
    _equal_below(cached, second, first)
    # Another prompt takes their place.
    smollm2.run(make_run(prompt[1:], sites=[STREAM]))
    third, cached = _cached(smollm2, run)
    assert cached == 0
    _agree(third, first)


def test_a_run_may_have_everything_computed(smollm2: EngineThread, prompt: tuple[int, ...]) -> None:
    run = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    first = _fresh(smollm2, run)
    held = smollm2.engine.rows.held_bytes
    second, cached = _cached(smollm2, replace(run, computes_all=True))
    assert cached == 0
    assert smollm2.engine.rows.held_bytes == held
    _agree(second, first)


def test_a_run_that_is_cancelled_leaves_right_rows_or_none(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    run = make_run(prompt, sites=[STREAM], sampling=GREEDY)
    alone = _fresh(smollm2, run)
    smollm2.forget()
    for _ in range(3):
        smollm2.call(started(smollm2.engine, replace(again(run), sampling=greedy(40))))
        result, _ = _cached(smollm2, run)
        _agree(result, alone)
        smollm2.forget()
        assert smollm2.engine.rows.held_bytes == 0
