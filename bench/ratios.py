"""Ratios of one engine's throughput to another's, measured in turn.

Every measurement lies between two of the base with the same workload, and its ratio is to their
mean, so that whatever else the machine does hits both alike.
"""

import itertools
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from bench.workloads import Request, Workload

Rate = Callable[[Sequence[Request]], Awaitable[float]]
"""Tokens a second over all requests at once."""


@dataclass(slots=True)
class Ratio:
    """One mode under one workload, with an entry of each list for every round."""

    workload: str
    mode: str
    base_rates: list[float] = field(default_factory=list)
    """Tokens a second of the base."""
    ratios: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def base_rate(self) -> float:
        return statistics.median(self.base_rates)


async def compare(
    base: Rate,
    modes: Mapping[str, Rate],
    workloads: Sequence[Workload],
    rounds: int,
    progress: Console,
) -> list[Ratio]:
    """The ratio of every mode to the base, under every workload."""
    found = {(load.name, mode): Ratio(load.name, mode) for load in workloads for mode in modes}
    for number in range(-1, rounds):  # Round -1 warms up.
        for load in workloads:
            seeds = itertools.count(1000 * (number + 1))
            before = await base(load.requests(next(seeds)))
            for mode, rate_of in modes.items():
                rate = await rate_of(load.requests(next(seeds)))
                after = await base(load.requests(next(seeds)))
                between = (before + after) / 2
                progress.print(
                    f"round {number}: {load.name}, {mode}: {rate:.0f} tok/s, "
                    f"{rate / between:.3f} of the base's {between:.0f}"
                )
                if number >= 0:
                    found[load.name, mode].base_rates.append(between)
                    found[load.name, mode].ratios.append(rate / between)
                before = after
    return [*found.values()]
