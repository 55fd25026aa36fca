"""Monitors have series of their own by turns, and nobody keeps those of others out."""

from actserve_server.monitors.fair_series import IDLE_S, FairSeries


class Bench:
    """Four places, and a clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ended: list[str] = []
        self.there: set[str] = set()
        self.series = FairSeries(4, self._end, lambda: self.now_s)

    def use(self, account: str, *names: str) -> list[bool]:
        have = {name: self.series.has(name, account) for name in names}
        self.there |= {name for name, has in have.items() if has}
        return [*have.values()]

    def _end(self, name: str) -> None:
        self.ended.append(name)
        self.there.remove(name)


def test_who_comes_first_keeps_its_place() -> None:
    bench = Bench()
    assert bench.use("ann", *"abcdef") == [True] * 4 + [False, False]
    assert bench.use("ann", "a") == [True]
    assert bench.ended == []


def test_an_account_that_has_most_gives_up_what_it_used_least_recently() -> None:
    bench = Bench()
    bench.use("ann", *"abcd")
    bench.use("ann", "a")
    assert bench.use("bob", *"uvw") == [True, True, False]
    assert bench.ended == ["b", "c"]
    # Shared evenly, places do not change hands, however often others ask.
    assert bench.use("ann", *"bcda") == [False, False, True, True]
    assert bench.use("bob", *"wvu") == [False, True, True]
    assert bench.use("eve", "x", "y") == [True, False]


def test_a_monitor_that_was_not_used_for_long_gives_up_its_place_to_any_other() -> None:
    bench = Bench()
    bench.use("ann", *"abcd")
    bench.now_s = IDLE_S - 1
    assert bench.use("ann", "a", "e") == [True, False]
    bench.now_s = IDLE_S
    assert bench.use("ann", "e") == [True]
    assert bench.ended == ["b"]


def test_no_more_have_a_place_than_there_is_room_for() -> None:
    bench = Bench()
    for number in range(1000):
        bench.now_s += 400.0
        bench.use(f"account{number % 7}", f"m{number % 50}")
        assert len(bench.there) <= 4
    assert len(bench.ended) > 4
