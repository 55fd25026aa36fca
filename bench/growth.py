"""How time grows with tokens, layers, runs and vectors; faster than in proportion is a fault.

Each thing is timed at n, 2n, 4n and 8n of what it has, the sizes in turn, and the shortest of
several times counts, which other work on the machine changes least. The slope of the logarithms is
the exponent: one where time is in proportion, two where twice as much takes four times as long.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from actserve_server.domain.sites import HookPoint, Site
from bench.engines import Change, Tapped, capture
from bench.host import IDS, host_options, steer
from bench.planning import Case, scattered, step_times_ms
from bench.workloads import Workload

BOUND = 1.15
"""Exponents above are errors. What it leaves beside one is for noise and caches."""
FITTED = 3
"""How many sizes, the largest, are fitted: among small ones what a step costs anyway would hide
how the rest grows."""
REPEATS = 5
_PLANNED_STEPS = 5

Timer = Callable[[int], Awaitable[float]]
"""Milliseconds with so many of something."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Something to time, and what there is more and more of."""

    timed: str
    by: str
    sizes: Sequence[int]
    milliseconds: Timer


@dataclass(frozen=True, slots=True)
class Slope:
    timed: str
    by: str
    sizes: Sequence[int]
    milliseconds: Sequence[float]
    """By size, the shortest of each."""
    exponent: float

    @property
    def superlinear(self) -> bool:
        return self.exponent > BOUND


async def measure_growth(progress: Console) -> list[Slope]:
    slopes = [await _slope(axis, progress) for axis in planning_axes()]
    with host_options() as options:
        tapped = await Tapped.start(options)
        try:
            slopes += [await _slope(axis, progress) for axis in engine_axes(tapped)]
        finally:
            await tapped.close()
    return slopes


async def _slope(axis: Axis, progress: Console) -> Slope:
    shortest = dict.fromkeys(axis.sizes, float("inf"))
    for _ in range(REPEATS):
        for size in axis.sizes:
            shortest[size] = min(shortest[size], await axis.milliseconds(size))
    times = [*shortest.values()]
    slope = Slope(axis.timed, axis.by, axis.sizes, times, exponent(axis.sizes, times))
    progress.print(f"growth: {slope}")
    return slope


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Of the power of the size that fits the times at the largest sizes best."""
    slope, _ = np.polyfit(np.log(sizes[-FITTED:]), np.log(times[-FITTED:]), 1)
    return float(slope)


def planning_axes() -> Iterator[Axis]:
    """Planning a step without an engine."""

    def axis(timed: str, by: str, sizes: Sequence[int], case: Callable[[int], Case]) -> Axis:
        async def milliseconds(size: int) -> float:
            return min(step_times_ms(case(size), _PLANNED_STEPS))

        return Axis(f"planning, {timed}", by, sizes, milliseconds)

    runs, layers, tokens = (32, 64, 128, 256), (8, 16, 32, 64), (2048, 4096, 8192, 16384)
    for timed, vectors in (("captured", 0), ("own vectors", 1)):
        yield axis(timed, "runs", runs, lambda n, v=vectors: Case("", n, vectors=v))
        yield axis(timed, "layers", layers, lambda n, v=vectors: Case("", 32, n, vectors=v))
        yield axis(timed, "tokens", tokens, lambda n, v=vectors: Case("", 1, vectors=v, tokens=n))
    yield axis("own vectors", "vectors", (2, 4, 8, 16), lambda n: Case("", 16, vectors=n))
    yield axis(
        "captured", "ranges", (500, 1000, 2000, 4000),
        lambda n: Case("", 1, where=scattered(n), tokens=2 * n),
    )  # fmt: skip


def engine_axes(tapped: Tapped) -> Iterator[Axis]:
    """Calls of an engine whose steps are host time."""
    every = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(tapped.info.layer_count))
    middle = every[len(every) // 2 :][:1]
    seeds = iter(range(1_000_000))

    def axis(
        timed: str, by: str, sizes: Sequence[int], work: Callable[[int], tuple[Workload, Change]]
    ) -> Axis:
        async def milliseconds(size: int) -> float:
            load, change = work(size)
            requests = load.requests(next(seeds))
            started = time.perf_counter()
            await tapped.doing(change)(requests)
            return (time.perf_counter() - started) * 1e3

        return Axis(f"calls, {timed}", by, sizes, milliseconds)

    def load(runs: int, prompt: int = 16, generated: int = 24) -> Workload:
        return Workload("growth", runs, prompt, generated, IDS)

    captured = capture(*every)
    tokens = (24, 48, 96, 192)
    yield axis("captured", "runs", (32, 64, 128, 256), lambda n: (load(n), captured))
    yield axis("captured", "layers", (4, 8, 16, 32), lambda n: (load(64), capture(*every[:n])))
    yield axis("captured", "generated tokens", tokens, lambda n: (load(64, 16, n), captured))
    yield axis("captured", "prompt tokens", tokens, lambda n: (load(64, n, 1), captured))
    yield axis(
        "own vector at every layer", "runs", (32, 64, 128, 256),
        lambda n: (load(n), steer(tapped.info, every)),
    )  # fmt: skip
    yield axis(
        "own vectors at a layer", "vectors", (2, 4, 8, 16),
        lambda n: (load(64), steer(tapped.info, middle, n)),
    )  # fmt: skip


def growth_tables(slopes: Sequence[Slope]) -> list[Table]:
    table = Table(
        title=f"How time grows (exponents of the largest {FITTED} sizes, at most {BOUND})"
    )
    for column in ("", "by", "sizes", "ms", "exponent"):
        table.add_column(column)
    for each in slopes:
        table.add_row(
            each.timed,
            each.by,
            " ".join(map(str, each.sizes)),
            " ".join(f"{took:.2f}" for took in each.milliseconds),
            f"{each.exponent:.2f}" + (" too steep" if each.superlinear else ""),
        )
    return [table]


def growth_faults(slopes: Sequence[Slope]) -> list[str]:
    return [
        f"{each.timed} takes n^{each.exponent:.2f} by {each.by}, and n^{BOUND} is the most: find "
        "what is done more than once for each of them"
        for each in slopes
        if each.superlinear
    ]
