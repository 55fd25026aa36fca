"""The prefix cache neither hides rows from a capture nor carries an edit to another run, and what
comes before the first edit is shared with every run."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    Result,
    add,
    again,
    at,
    cached_tokens,
    collect,
    greedy,
    make_run,
    relative_errors,
)

SITE = Site(HookPoint.RESID_POST, 10)
AFTER = Site(HookPoint.RESID_POST, 29)
BLOCK = 32
"""Tokens in a block of the engine's cache."""
VECTOR = np.random.default_rng(3).normal(size=576).astype(np.float32) * 4
GREEDY = greedy(12)


@pytest.fixture
def prompt(smollm2: EngineThread, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Several blocks long, and never seen before by the engine."""
    text = f"{request.node.name}. " + "The river runs past the old stone mill to the sea. " * 12
    return smollm2.tokenize(text).ids


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
    before = cached_tokens()
    second = smollm2.run(make_run(prompt, sites=[SITE], at=last, sampling=GREEDY))
    assert cached_tokens() > before
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
    before = cached_tokens()
    second = smollm2.run(make_run(prompt, steering, sampling=GREEDY))
    cached = cached_tokens() - before
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
        before = cached_tokens()
        found.append(smollm2.run(replace(again(run), tenant=tenant)))
        cached.append(cached_tokens() - before)
    assert cached[:2] == [0, 0]
    assert cached[2] > 0
    # Whoever asks, the numbers are the same.
    assert found[0].token_ids == found[1].token_ids == found[2].token_ids
    for result, reused in zip(found, cached, strict=True):
        assert [report.reused_rows for report in result.interventions] == [reused] * len(steering)


def _run_fresh(engine: EngineThread, run: Run) -> Result:
    """What a run gives that finds nothing in the cache."""
    engine.forget()
    return engine.run(again(run))


def _run_cached(engine: EngineThread, run: Run) -> tuple[Result, int]:
    """And one that may, with how many tokens it found."""
    before = cached_tokens()
    result = engine.run(again(run))
    return result, cached_tokens() - before


def _blocks(end: int) -> int:
    """The tokens of the whole blocks below a position."""
    return end // BLOCK * BLOCK


def _agree(one: Result, other: Result) -> None:
    assert one.token_ids == other.token_ids
    for mine, others in zip(one.logprobs, other.logprobs, strict=True):
        assert mine.logprob == pytest.approx(others.logprob, abs=1e-3)
    for site, rows in one.rows.items():
        assert relative_errors(rows, other.rows[site]).max() <= 1e-3


def _steered(prompt: tuple[int, ...], where: Selection, vector: np.ndarray = VECTOR) -> Run:
    """A run that tells of the last position what is computed there after the edit."""
    return make_run(
        prompt,
        add(SITE, vector, selection=where),
        sites=[AFTER],
        at=at(len(prompt) - 1),
        sampling=replace(GREEDY, logprobs=1),
    )


# Of a prompt of so many tokens, the positions that are changed.
PLACES = {
    "the first token": lambda tokens: at(0),
    "the end of the first block": lambda tokens: at(BLOCK - 1),
    "the beginning of the second": lambda tokens: at(BLOCK),
    "two in later blocks": lambda tokens: at(2 * BLOCK + 5, tokens - 2),
    "from the third block on": lambda tokens: Selection(Spans(((2 * BLOCK + 5, NO_END),))),
    "the last token": lambda tokens: at(tokens - 1),
    "what is generated": lambda tokens: Selection(Spans(((tokens, NO_END),))),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_edit_computes_the_blocks_from_its_position_on_and_shares_those_before(
    smollm2: EngineThread, prompt: tuple[int, ...], place: Callable[[int], Selection]
) -> None:
    where = place(len(prompt))
    first = where.spans.ranges[0][0]
    plain, steered = make_run(prompt, sampling=GREEDY), _steered(prompt, where)
    others = _steered(prompt, where, -VECTOR)
    fresh = [_run_fresh(smollm2, run) for run in (steered, others)]

    expected = _run_fresh(smollm2, plain)
    for run, alone in zip((steered, others), fresh, strict=True):
        result, cached = _run_cached(smollm2, run)
        assert cached == _blocks(min(first, len(prompt) - 1))
        _agree(result, alone)
        (report,), (wanted,) = result.interventions, alone.interventions
        assert report.reused_rows == 0
        assert (report.rows, report.changed_rows) == (wanted.rows, wanted.changed_rows)
    assert fresh[0].rows[AFTER].tolist() != fresh[1].rows[AFTER].tolist() or first >= len(prompt)

    # What it has left behind is that of the prompt, and of equal edits alone.
    result, cached = _run_cached(smollm2, plain)
    assert cached == _blocks(len(prompt) - 1)
    assert result.token_ids == expected.token_ids
    result, cached = _run_cached(smollm2, steered)
    assert cached == _blocks(len(prompt) - 1)
    _agree(result, fresh[0])
    assert result.interventions[0].reused_rows == len(where.spans.within(0, cached))


def test_what_comes_before_an_edit_serves_plain_runs_and_other_edits(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    """Whoever comes first."""
    middle, last = at(2 * BLOCK + 5), at(len(prompt) - 1)
    plain, steered = make_run(prompt, sampling=GREEDY), _steered(prompt, middle)
    other = _steered(prompt, last, -VECTOR)
    alone = [_run_fresh(smollm2, run) for run in (plain, other)]
    _run_fresh(smollm2, steered)
    result, cached = _run_cached(smollm2, other)
    assert cached == 2 * BLOCK
    _agree(result, alone[1])
    _run_fresh(smollm2, steered)
    result, cached = _run_cached(smollm2, plain)
    assert cached == 2 * BLOCK
    assert result.token_ids == alone[0].token_ids


def test_of_a_selection_by_token_id_only_tokens_that_match_are_reused(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    chosen = prompt[2 * BLOCK]
    where = Selection(Spans(((2 * BLOCK, NO_END),)), frozenset({chosen}))
    _run_fresh(smollm2, make_run(prompt, sampling=GREEDY))
    first, cached = _run_cached(smollm2, _steered(prompt, where))
    assert cached == 2 * BLOCK
    assert first.interventions[0].reused_rows == 0
    second, cached = _run_cached(smollm2, _steered(prompt, where))
    _agree(second, first)
    matching = np.flatnonzero(np.array(prompt) == chosen)
    found = ((matching >= 2 * BLOCK) & (matching < cached)).sum()
    assert 0 < found < cached - 2 * BLOCK
    assert second.interventions[0].reused_rows == found
    assert second.interventions[0].rows == first.interventions[0].rows


def test_a_capture_of_a_steered_prompt_has_every_row_though_most_are_cached(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    edit = add(SITE, VECTOR, selection=at(len(prompt) - 1))
    plain = _run_fresh(smollm2, make_run(prompt, sites=[AFTER]))
    _run_fresh(smollm2, make_run(prompt))
    captured, cached = _run_cached(smollm2, make_run(prompt, edit, sites=[AFTER]))
    assert cached == 0
    assert captured.positions == [*range(len(prompt))]
    errors = relative_errors(captured.rows[AFTER], plain.rows[AFTER])
    assert errors[:-1].max() <= 1e-3
    assert errors[-1] > 1e-2


def test_what_is_shared_before_edits_is_whole_though_who_computed_it_was_cancelled(
    smollm2: EngineThread, prompt: tuple[int, ...]
) -> None:
    """Runs of one prompt at once, steered at its end, of two tenants, every other one cancelled."""
    last = at(len(prompt) - 1)
    runs = [
        replace(_steered(prompt, last, VECTOR * scale), tenant=tenant)
        for tenant in ("", "other")
        for scale in (1, -1, 0.5, -0.5)
    ]
    alone = [_run_fresh(smollm2, run) for run in runs]

    async def crowd() -> list[Result]:
        staying = [asyncio.create_task(collect(smollm2.engine, again(run))) for run in runs]
        leaving = [asyncio.create_task(collect(smollm2.engine, again(run))) for run in runs]
        for task in leaving:
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        return list(await asyncio.gather(*staying))

    smollm2.forget()
    for result, wanted in zip(smollm2.call(crowd()), alone, strict=True):
        _agree(result, wanted)
