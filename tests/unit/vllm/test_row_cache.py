"""Rows that were captured of a prompt are found by the next run that wants them, within a bound."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.attention_rows import QueryMeasures, ReceivedWeights
from actserve_server.domain.positions import NO_END, Selection
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Unembed
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.inbox import Block
from actserve_server.engine.vllm.row_cache import ENTRY_BYTES, Filling, Found, RowCache
from tests.unit.networks import network, reading
from tests.unit.vllm.steps import at, make_run, read, site

SIZE = 4
"""Tokens in a block."""
ONE, TWO = "resid_post.0", "q.1"
WIDTHS = {ONE: 6, TWO: 3}
"""Bytes of a row."""
BLOCK_BYTES = SIZE * (8 + WIDTHS[ONE]) + ENTRY_BYTES
"""Of a block at `ONE`."""
TOKENS = 14
"""Of a prompt of three blocks and a half."""


class Watched:
    def __init__(self) -> None:
        self.held_bytes, self.found_rows = 0, 0

    def held(self, more: int) -> None:
        self.held_bytes += more

    def found(self, rows: int) -> None:
        self.found_rows += rows


def _cache(max_bytes: int = 1 << 20) -> RowCache:
    return RowCache(max_bytes, SIZE)


def _names(prompt: str, count: int = TOKENS // SIZE) -> list[bytes]:
    return [f"{prompt} {number}".encode() for number in range(count)]


def _readings(*captures: Capture) -> tuple[wire.Reading, ...]:
    taps = wire.taps_of(make_run(*captures), key=1)
    assert taps is not None
    return taps.captures


def _sites(capture: Capture) -> list[str]:
    return [str(each) for each in capture.sites]


def _row(site: str, position: int, seed: int) -> np.ndarray:
    values = np.random.default_rng((seed, position, WIDTHS[site]))
    return values.integers(0, 256, WIDTHS[site], np.uint8)


def _block(capture: Capture, positions: Sequence[int], seed: int) -> Block:
    sites = _sites(capture)
    rows = [np.concatenate([_row(site, each, seed) for site in sites]) for each in positions]
    row_bytes = tuple(WIDTHS[site] for site in sites)
    return Block(np.array(positions), row_bytes, np.stack(rows))


def _fill(
    cache: RowCache,
    prompt: str,
    *captures: Capture,
    seed: int = 0,
    steps: Sequence[int] = (0, TOKENS),
    commit: bool = True,
) -> None:
    """Captures a prompt, in steps from one of these positions to the next."""
    filling = cache.filling(_names(prompt), _readings(*captures))
    for start, end in pairwise(steps):
        taken = [
            [_block(each, where.tolist(), seed)]
            if len(where := each.spans.within(start, end))
            else []
            for each in captures
        ]
        filling.add(taken)
    filling.commit() if commit else filling.drop()


def _find(cache: RowCache, prompt: str, *captures: Capture, tokens: int = TOKENS) -> Found:
    return cache.find(_names(prompt), _readings(*captures), tokens)


def _end(cache: RowCache, prompt: str, *captures: Capture) -> int:
    return _find(cache, prompt, *captures).end


def _check(found: Found, *captures: Capture, seed: int = 0) -> None:
    """All rows below the end are those that were captured, and in order."""
    rows = dict(found.rows)
    for number, capture in enumerate(captures):
        wanted = capture.spans.within(0, found.end)
        if not len(wanted):
            assert number not in rows
            continue
        expected = _block(capture, wanted.tolist(), seed)
        assert rows[number].positions.tolist() == wanted.tolist()
        assert rows[number].row_bytes == expected.row_bytes
        assert np.array_equal(rows[number].data, expected.data)


@pytest.mark.parametrize("steps", [(0, TOKENS), (0, 4, 8, TOKENS), (0, 3, 5, 6, 13, TOKENS)])
def test_what_was_captured_of_whole_blocks_is_found_however_it_came(steps: Sequence[int]) -> None:
    cache, capture = _cache(), read(ONE, TWO)
    _fill(cache, "a", capture, steps=steps)
    found = _find(cache, "a", capture)
    assert found.end == 12
    _check(found, capture)
    assert _end(cache, "b", capture) == 0


def test_the_last_token_is_always_computed() -> None:
    cache, capture = _cache(), read(ONE)
    _fill(cache, "a", capture)
    found = _find(cache, "a", capture, tokens=12)
    assert found.end == 11
    _check(found, capture)


LAST = at((TOKENS - 1, TOKENS))
FEW = at((1, 3), (9, 10))


def _measured(where: Selection, offset: int = 4) -> Capture:
    return read(TWO, where=where, derived=QueryMeasures(1, (offset,)))


MEASURED = _measured(FEW)
RECEIVED = read(TWO, where=at((0, 10)), derived=ReceivedWeights(1, FEW.spans))

WANTED: dict[str, tuple[tuple[Capture, ...], tuple[Capture, ...], int]] = {
    "nothing of the prompt": ((), (read(ONE, where=at((TOKENS, NO_END))),), TOKENS - 1),
    "the last token": ((), (read(ONE, where=LAST),), TOKENS - 1),
    "what nobody captured": ((), (read(ONE, where=FEW),), 1),
    "the same": ((read(ONE, where=FEW),), (read(ONE, where=FEW),), TOKENS - 1),
    "fewer": ((read(ONE),), (read(ONE, where=FEW),), TOKENS - 1),
    "more of a block": ((read(ONE, where=FEW),), (read(ONE, where=at((1, 4))),), 3),
    "another block": ((read(ONE, where=FEW),), (read(ONE, where=at((1, 3), (5, 6))),), 5),
    "what is in no whole block": ((read(ONE),), (read(ONE, where=at((2, 3), (12, 13))),), 12),
    "fewer sites": ((read(ONE, TWO),), (read(TWO),), 12),
    "sites in another order": ((read(ONE, TWO),), (read(TWO, ONE),), 12),
    "more sites": ((read(ONE),), (read(ONE, TWO),), 0),
    "sites of two captures": ((read(ONE), read(TWO)), (read(TWO, ONE),), 12),
    "two captures": ((read(ONE), read(TWO, where=FEW)), (read(TWO, where=FEW), read(ONE)), 12),
    "two, of which one was not": ((read(ONE),), (read(ONE), read(TWO, where=at((6, 7)))), 6),
    "the rest of a block": (
        (read(ONE, where=at((0, 2))), read(ONE, where=at((2, 4)))),
        (read(ONE, where=at((0, 4))),),
        TOKENS - 1,
    ),
    "measures that are all there": ((MEASURED,), (MEASURED,), TOKENS - 1),
    "measures, and rows that are not all there": ((MEASURED,), (MEASURED, read(ONE)), 0),
    "measures of which the last is missing": ((MEASURED,), (_measured(at((1, 3), (12, 13))),), 0),
    "measures of what comes": ((), (_measured(at((TOKENS, NO_END))),), 0),
    "measures, and no keys for others": (
        (MEASURED, read(ONE)),
        (MEASURED, read(ONE), _measured(at((6, 7)), 5)),
        0,
    ),
    "what keys receive": ((RECEIVED,), (RECEIVED,), 0),
    "predictions": ((read(ONE),), (read(ONE, derived=Unembed(2)),), 0),
    "predictions further on": (
        (read(ONE),),
        (read(ONE), read(ONE, where=at((6, 7)), derived=Unembed(2))),
        6,
    ),
}


@pytest.mark.parametrize(("captured", "wanted", "end"), WANTED.values(), ids=WANTED)
def test_a_run_computes_from_the_first_wanted_row_that_is_missing(
    captured: tuple[Capture, ...], wanted: tuple[Capture, ...], end: int
) -> None:
    cache = _cache()
    for capture in captured:
        _fill(cache, "a", capture)
    found = _find(cache, "a", *wanted)
    assert found.end == end
    _check(found, *wanted)


def test_predictions_are_not_taken_for_rows() -> None:
    cache = _cache()
    _fill(cache, "a", read(ONE, derived=Unembed(2)))
    assert cache.held_bytes == 0


def _networks(*seeds: int, sites: Sequence[str] = (ONE, TWO)) -> Capture:
    widths = {site(name): WIDTHS[name] for name in sites}
    return reading(network(widths, seed=seed, heads=2, queries=True) for seed in seeds)


def _projected(seed: int = 0, top_k: int | None = None) -> Capture:
    directions = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
    return read(ONE, TWO, derived=Projected(Projection(directions), top_k))


MADE: dict[str, tuple[Capture, Capture, int, dict[str, Capture]]] = {
    "networks": (
        _networks(1, 2),
        _networks(1, 2),
        1,
        {
            "rows": read(ONE, TWO),
            "others": _networks(1, 3),
            "fewer": _networks(1),
            "in another order": _networks(2, 1),
            "at another order of sites": _networks(1, 2, sites=(TWO, ONE)),
        },
    ),
    "projections": (
        _projected(),
        _projected(),
        2,
        {"rows": read(ONE, TWO), "others": _projected(1), "the largest": _projected(top_k=1)},
    ),
}
"""What is made of rows, the same again, its columns, and what is something else."""


@pytest.mark.parametrize(("made", "same", "columns", "others"), MADE.values(), ids=MADE)
def test_what_was_made_of_rows_is_found_by_whoever_wants_the_same_made(
    made: Capture, same: Capture, columns: int, others: dict[str, Capture]
) -> None:
    cache, row_bytes = _cache(), (12,) * columns
    data = np.random.default_rng(0).integers(0, 256, (TOKENS, sum(row_bytes)), np.uint8)
    filling = cache.filling(_names("a"), _readings(made))
    filling.add([[Block(np.arange(TOKENS), row_bytes, data)]])
    filling.commit()
    found = _find(cache, "a", same)
    assert found.end == 12
    ((_, block),) = found.rows
    assert (block.row_bytes, block.positions.tolist()) == (row_bytes, [*range(12)])
    assert np.array_equal(block.data, data[:12])
    assert {name: _end(cache, "a", other) for name, other in others.items()} == dict.fromkeys(
        others, 0
    )
    assert _end(cache, "b", same) == 0


def test_of_a_row_that_comes_twice_the_first_is_kept() -> None:
    cache = _cache()
    _fill(cache, "a", read(ONE, where=at((1, 3))), seed=1)
    _fill(cache, "a", read(ONE, where=at((0, 4))), seed=2)
    (_, block), *_ = _find(cache, "a", read(ONE)).rows
    expected = [_row(ONE, each, 1 if each in (1, 2) else 2) for each in range(4)]
    assert np.array_equal(block.data, np.stack(expected))
    assert cache.held_bytes == BLOCK_BYTES


def test_rows_are_copies_that_keep_nothing_else_alive() -> None:
    cache, capture = _cache(), read(ONE)
    filling = cache.filling(_names("a"), _readings(capture))
    block = _block(capture, range(TOKENS), 0)
    filling.add([[block]])
    filling.commit()
    block.data[:] = 0
    found = _find(cache, "a", capture)
    _check(found, capture)
    dict(found.rows)[0].data[:] = 0
    _check(_find(cache, "a", capture), capture)


# Bounds.


def test_without_room_nothing_is_held() -> None:
    cache, capture = _cache(0), read(ONE)
    _fill(cache, "a", capture)
    assert (cache.held_bytes, _end(cache, "a", capture)) == (0, 0)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_of_a_prompt_that_is_too_long_its_beginning_is_held(blocks: int) -> None:
    cache, capture = _cache(blocks * BLOCK_BYTES + 1), read(ONE)
    _fill(cache, "a", capture)
    assert cache.held_bytes == blocks * BLOCK_BYTES
    assert _end(cache, "a", capture) == blocks * SIZE


def test_what_was_used_longest_ago_goes_first_and_of_a_prompt_its_end() -> None:
    cache, capture = _cache(6 * BLOCK_BYTES), read(ONE)
    for prompt in "abac":
        found = _find(cache, prompt, capture)
        if found.end == 0:
            _fill(cache, prompt, capture)
    # "a" was used after "b", for which there is no room beside "c".
    assert [_end(cache, prompt, capture) for prompt in "abc"] == [12, 0, 12]
    assert cache.held_bytes == 6 * BLOCK_BYTES
    _find(cache, "a", capture)
    _fill(cache, "d", read(ONE, where=at((0, 8))))
    assert [_end(cache, prompt, capture) for prompt in "acd"] == [12, 4, 8]


def test_rows_that_were_found_stay_when_they_are_dropped() -> None:
    cache, capture = _cache(3 * BLOCK_BYTES), read(ONE)
    _fill(cache, "a", capture)
    found = _find(cache, "a", capture)
    _fill(cache, "b", capture, seed=1)
    assert _end(cache, "a", capture) == 0
    _check(found, capture)


def test_rows_on_the_way_count_and_are_not_found() -> None:
    cache, capture = _cache(4 * BLOCK_BYTES), read(ONE)
    one, other = (cache.filling(_names(each), _readings(capture)) for each in "ab")
    for filling in (one, other):
        filling.add([[_block(capture, range(TOKENS), 0)]])
    assert cache.held_bytes == 4 * BLOCK_BYTES
    assert [_end(cache, prompt, capture) for prompt in "ab"] == [0, 0]
    other.commit()
    one.commit()
    assert [_end(cache, prompt, capture) for prompt in "ab"] == [12, 4]


def test_what_is_not_committed_is_never_found_and_its_room_is_free_again() -> None:
    cache, capture = _cache(), read(ONE)
    _fill(cache, "a", capture, commit=False)
    assert (cache.held_bytes, _end(cache, "a", capture)) == (0, 0)
    # Nor what a thread still adds.
    filling = cache.filling(_names("a"), _readings(capture))
    filling.drop()
    filling.add([[_block(capture, range(TOKENS), 0)]])
    filling.drop()
    assert (cache.held_bytes, _end(cache, "a", capture)) == (0, 0)


def test_dropping_what_was_committed_changes_nothing() -> None:
    cache, capture = _cache(), read(ONE)
    filling = cache.filling(_names("a"), _readings(capture))
    filling.add([[_block(capture, range(TOKENS), 0)]])
    filling.commit()
    filling.drop()
    assert (cache.held_bytes, _end(cache, "a", capture)) == (3 * BLOCK_BYTES, 12)


def test_what_is_here_already_takes_no_room_on_the_way() -> None:
    cache, capture = _cache(3 * BLOCK_BYTES), read(ONE)
    _fill(cache, "a", capture)
    _fill(cache, "a", capture, commit=False)
    assert _end(cache, "a", capture) == 12


class _DropsMeanwhile(np.ndarray):
    """While it is copied, its run is cancelled."""

    filling: Filling

    def copy(self, *args: Any) -> np.ndarray:  # type: ignore[override]
        self.filling.drop()
        return np.array(self)


def test_a_run_that_is_cancelled_while_its_rows_are_copied_leaves_none() -> None:
    cache, capture = _cache(), read(ONE)
    _DropsMeanwhile.filling = filling = cache.filling(_names("a"), _readings(capture))
    block = _block(capture, range(TOKENS), 0)
    filling.add([[replace(block, data=block.data.view(_DropsMeanwhile))]])
    filling.commit()
    assert (cache.held_bytes, _end(cache, "a", capture)) == (0, 0)


def test_the_same_at_once_is_held_once() -> None:
    cache, capture = _cache(), read(ONE)
    fillings = [cache.filling(_names("a"), _readings(capture)) for _ in range(3)]
    for filling in fillings:
        filling.add([[_block(capture, range(TOKENS), 0)]])
    for filling in fillings:
        filling.commit()
    assert cache.held_bytes == 3 * BLOCK_BYTES


def test_a_closed_cache_holds_nothing_whoever_still_runs() -> None:
    cache, capture = _cache(), read(ONE)
    _fill(cache, "a", capture)
    filling = cache.filling(_names("b"), _readings(capture))
    filling.add([[_block(capture, range(TOKENS), 0)]])
    cache.close()
    filling.commit()
    assert cache.held_bytes == 0
    _fill(cache, "c", capture)
    assert cache.held_bytes == 0
    assert [_end(cache, prompt, capture) for prompt in "abc"] == [0, 0, 0]


def test_what_is_held_and_given_is_told() -> None:
    watched = Watched()
    cache = RowCache(4 * BLOCK_BYTES, SIZE, watched)
    capture = read(ONE)
    for prompt in "ab":
        _fill(cache, prompt, capture)
        assert watched.held_bytes == cache.held_bytes > 0
    _fill(cache, "c", capture, commit=False)
    assert watched.held_bytes == cache.held_bytes
    assert watched.found_rows == 0
    _find(cache, "b", read(ONE, where=at((0, 3))))
    assert watched.found_rows == 3
    cache.close()
    assert watched.held_bytes == 0
