"""How long the stages of calls take: each is a place in a histogram, and a span within its call's.

A stage that a call goes through as a whole, such as waiting for its turn, is a block under `stage`.
One of which it has a part again and again, such as sending, is a `Spread`: its seconds are added up
and told once, when the call ends.
"""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from enum import StrEnum
from typing import TypeVar

from prometheus_client import Histogram

from actserve_server import traces
from actserve_server.traces import Attributes

T = TypeVar("T")


class Stage(StrEnum):
    """A stage of a call, or of work that it has begun."""

    TOKENIZE = "tokenize"
    """Making tokens of a prompt, or texts of tokens."""
    QUEUE = "queue"
    """A run's wait until it is let in."""
    ENGINE = "engine"
    """A run, from when it is let in until the engine has finished it."""
    ARRIVAL = "arrival"
    """Of that the end: from its last token until its last rows are there."""
    CAPTURE = "capture"
    """What is made of a call's rows: projected, reduced, scored, counted."""
    SEND = "send"
    """Writing the messages of a call's stream, with waiting for a reader that is slow."""
    EXPLAIN = "explain"
    """Explaining a call's rows, with the runs that it takes."""
    CELL = "cell"
    """A cell of a sweep."""
    FIT = "fit"
    """A fit of a monitor, once it has begun."""
    GRAPH = "graph"
    """Making an attribution graph, once it has begun."""


_SECONDS = Histogram(
    "actserve_stage_seconds",
    "Seconds that the stages of calls took.",
    ("stage",),
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
for _each in Stage:
    _SECONDS.labels(_each)  # At zero from the beginning.


@contextmanager
def stage(which: Stage, attributes: Attributes | None = None) -> Iterator[None]:
    """Has the block be a stage of the call that is being served."""
    with traces.span(which, attributes):
        started = time.perf_counter()
        try:
            yield
        finally:
            _observe(which, time.perf_counter() - started)


class Spread:
    """A stage of a call that comes in parts, which may lie within each other's time."""

    def __init__(self, which: Stage) -> None:
        self._which = which
        self._seconds = 0.0
        self._began_ns: int | None = None
        self._ended_ns = 0

    @contextmanager
    def part(self) -> Iterator[None]:
        """Has the block be a part of it."""
        if self._began_ns is None:
            self._began_ns = time.time_ns()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started
            self._ended_ns = time.time_ns()

    async def timed(self, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same events; waiting for each is a part. Closes `events` at the end."""
        async with aclosing(events):
            while True:
                with self.part():
                    try:
                        event = await anext(events)
                    except StopAsyncIteration:
                        return
                yield event

    def end(self) -> None:
        """Tells it, if there was any of it."""
        if self._began_ns is not None:
            _observe(self._which, self._seconds)
            told = {"actserve.seconds": self._seconds}
            traces.add_span(self._which, self._began_ns, self._ended_ns, told)
            self._began_ns = None


def _observe(which: Stage, seconds: float) -> None:
    _SECONDS.labels(which).observe(seconds, traces.exemplar())
