"""What it takes to follow a sample grows with its tokens and its monitors, and with neither twice:
it is done on the event loop, where every other call waits meanwhile."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Rows
from actserve_server.monitors.sample_scores import QUICK_NUMBERS, Reached, SampleScores
from actserve_server.monitors.watched import Stop
from tests.unit.monitors.watching import NEVER, level, watcher

TOKENS = 300


class CountingIds(list[int]):
    """Tokens that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        self.looks += 1
        return super().__getitem__(index)


class CountingSpans(Spans):
    """Spans that count, together, how often they are asked."""

    asked = 0

    def within(self, start: int, end: int) -> np.ndarray:
        CountingSpans.asked += 1
        return super().within(start, end)


def test_a_token_that_does_not_count_is_looked_at_once() -> None:
    of_token = Selection(Spans(((0, NO_END),)), frozenset({1}))
    scores = SampleScores([watcher(level(NEVER, Stop()), selection=of_token)])
    ids = CountingIds()
    for _ in range(TOKENS):
        ids.append(0)
        assert scores.ready(ids) == len(ids)
        scores.score(scores.ready(ids))
    assert ids.looks <= 2 * TOKENS

    ids.append(1)
    assert scores.ready(ids) == TOKENS
    scores.add(0, Rows(0, 0, np.array([TOKENS]), np.zeros((1, 1), np.float32)), ids)
    scores.check(ids)


def test_a_row_of_one_monitor_asks_nothing_of_those_that_wait_for_theirs() -> None:
    monitors = 40
    scores = SampleScores(
        [
            watcher(level(NEVER, Stop()), selection=Selection(CountingSpans(((number, NO_END),))))
            for number in range(monitors)
        ]
    )
    ids = [0] * monitors
    for number, rows in enumerate(_rows_of_each(0, monitors)):
        scores.add(number, rows, ids)
    CountingSpans.asked = 0
    for position in range(monitors, monitors + TOKENS):
        ids.append(0)
        for number, rows in enumerate(_rows_of_each(position, monitors)):
            scores.add(number, rows, ids)
            end = scores.ready(ids)
            assert end == (position + 1 if number == monitors - 1 else position)
            scores.score(end)
    assert CountingSpans.asked <= 6 * TOKENS * monitors
    assert all(each.tokens == TOKENS + monitors - n for n, each in enumerate(scores.scores()))


@pytest.mark.parametrize(("tokens", "aside"), [(QUICK_NUMBERS, False), (QUICK_NUMBERS + 1, True)])
async def test_what_takes_long_is_scored_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, tokens: int, aside: bool
) -> None:
    threads: list[int] = []
    score = SampleScores.score

    def noting(of: SampleScores, end: int | None = None) -> list[Reached]:
        threads.append(threading.get_ident())
        return score(of, end)

    monkeypatch.setattr(SampleScores, "score", noting)
    scores = SampleScores([watcher(level(0.5))])
    numbers = np.zeros((tokens, 1), np.float32)
    numbers[-1] = 1
    scores.add(0, Rows(0, 0, np.arange(tokens), numbers), [0] * tokens)
    assert [each.position for each in await scores.score_aside()] == [tokens - 1]
    assert await scores.score_aside() == []
    assert [each != threading.get_ident() for each in threads] == [aside]


def _rows_of_each(position: int, monitors: int) -> Iterator[Rows]:
    """The row at a position, of each; at the first all that come before the last of them."""
    for number in range(monitors):
        positions = np.arange(number, monitors) if position == 0 else np.array([position])
        yield Rows(number, 0, positions, np.zeros((len(positions), 1), np.float32))
