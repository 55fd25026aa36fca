"""What a call that is to last does where its server is gone: how long it waits, and how often."""

from types import SimpleNamespace
from typing import Any

import pytest

from actserve import _retries
from actserve._retries import Reconnects
from actserve.errors import BadResponse, DeadlineExceeded, Unavailable

GONE = Unavailable("gone")


class Clock:
    """Time that passes when a test says so; and no luck: each pause is as long as it may be."""

    now = 100.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.undo()  # The pauses are as they are outside of tests.
    monkeypatch.setattr(_retries, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(_retries, "random", SimpleNamespace(uniform=lambda low, high: high))
    return clock


def connected(**limits: Any) -> Reconnects:
    made = Reconnects(limits.get("timeout"), limits.get("give_up_after"))
    made.connected()
    return made


def pauses(attempts: Reconnects, count: int) -> list[float | None]:
    return [attempts.pause(GONE) for _ in range(count)]


def test_pauses_double_up_to_a_quarter_of_a_minute_without_an_end() -> None:
    assert pauses(connected(), 100) == [0.25, 0.5, 1, 2, 4, 8, *[15] * 94]


def test_before_the_first_connection_it_is_tried_as_any_call_is() -> None:
    assert pauses(Reconnects(None, None), 4) == [0.25, 0.75, 2.25, None]


def test_a_connection_that_breaks_at_once_again_and_again_is_made_ever_later(clock: Clock) -> None:
    attempts, waited = connected(), []
    for _ in range(4):
        clock.now += 1
        waited += pauses(attempts, 1)
        attempts.connected()
    assert waited == [0.25, 0.5, 1, 2]


@pytest.mark.parametrize("by", ["time", "something that comes"])
def test_a_connection_that_was_good_is_made_again_at_once(clock: Clock, by: str) -> None:
    attempts = connected()
    pauses(attempts, 5)
    attempts.connected()
    if by == "time":
        clock.now += 11
    else:
        attempts.good()
    assert pauses(attempts, 2) == [0.25, 0.5]


def test_what_the_server_says_is_waited_for_up_to_half_a_minute() -> None:
    attempts = connected()
    told = [attempts.pause(Unavailable("", retry_after=each)) for each in (3, 31, 1e12, -100)]
    assert told == [3.25, 30.5, 31, 2]


def test_it_ends_when_the_server_was_gone_for_too_long(clock: Clock) -> None:
    attempts = connected(give_up_after=60)
    while attempts.pause(GONE):
        clock.now += 1
    assert 100 + 60 - 15 <= clock.now <= 100 + 60
    attempts.connected()  # Of a new outage all of it is left.
    assert attempts.pause(GONE)


def test_it_ends_when_its_time_is_over(clock: Clock) -> None:
    attempts = connected(timeout=60)
    assert attempts.pause(GONE)
    clock.now += 59.9
    assert attempts.pause(GONE) is None


def test_only_a_server_that_is_gone_is_looked_for() -> None:
    assert connected().pause(BadResponse("odd")) is None
    # The limit of a proxy ends no watch; that of the caller does.
    assert connected().pause(DeadlineExceeded("late"))
    assert connected(timeout=60).pause(DeadlineExceeded("late")) is None
