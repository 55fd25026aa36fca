"""What capturing and steering cost beside plain vLLM, and what the whole service makes of it.

The base of every ratio is plain vLLM with our engine's cores, threads, KV cache, processes and
model runner. Plain vLLM as it starts by default is compared with it as well, so that the table
tells what is due to our code and what to how a server is laid out; and so is our engine with as few
taps as it can have, one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from actserve_server.engine.vllm.options import EngineOptions
from bench.engines import Stock, Tapped, idle, modes
from bench.ratios import Rate, Ratio, compare
from bench.service import ServiceFigures, measure_service
from bench.workloads import WORKLOADS

BASE = "plain vLLM, laid out like ours"
DEFAULT = "plain vLLM, by default"
ONE_TAP = "ours with one tap, idle"

AIMS = {
    ("decode", "ours, idle"): 0.98,
    ("decode", "ours, one layer"): 0.97,
    ("decode", "ours, all layers"): 0.90,
    ("decode", "ours, own vector each"): 0.95,
}
"""Ratios to plain vLLM that the project aims at."""


@dataclass(frozen=True, slots=True)
class TapsFigures:
    ratios: Sequence[Ratio]
    service: Sequence[ServiceFigures]


async def measure_taps(
    options: EngineOptions, rounds: int, wanted: re.Pattern[str], progress: Console
) -> TapsFigures:
    """Of the modes whose names match. No more than two engines are alive at once."""
    base = Stock.like_ours(options)
    ratios: list[Ratio] = []

    async def add(rates: Mapping[str, Rate]) -> None:
        ratios.extend(await compare(base.rate, rates, WORKLOADS, rounds, progress))

    try:
        default = Stock.by_default(options)
        try:
            await add({DEFAULT: default.rate})
        finally:
            default.close()
        one_tap = await Tapped.start(replace(options, hook_points=("final_norm",)))
        try:
            await add({ONE_TAP: one_tap.doing(idle)})
        finally:
            await one_tap.close()
        tapped = await Tapped.start(options)
        try:
            changes = modes(tapped.info).items()
            await add(
                {
                    f"ours, {name}": tapped.doing(way)
                    for name, way in changes
                    if wanted.fullmatch(name)
                }
            )
            service = await measure_service(tapped.engine, progress)
        finally:
            await tapped.close()
    finally:
        base.close()
    return TapsFigures(ratios, service)


def taps_tables(figures: TapsFigures) -> list[Table]:
    return [_ratios_table(figures.ratios), _service_table(figures.service)]


def _ratios_table(ratios: Sequence[Ratio]) -> Table:
    table = Table(
        title="Throughput as a ratio to plain vLLM in the same processes, on the same cores "
        "(median, range over rounds)"
    )
    for column in ("workload", "engine, mode", "ratio", "range", "aim"):
        table.add_column(column)
    for load in dict.fromkeys(each.workload for each in ratios):
        rows = [each for each in ratios if each.workload == load]
        table.add_row(load, BASE, "1", f"{rows[0].base_rate:.0f} tok/s", "")
        for row in rows:
            aim = AIMS.get((load, row.mode))
            table.add_row(
                load,
                row.mode,
                f"{row.median:.3f}",
                f"{min(row.ratios):.3f} to {max(row.ratios):.3f}",
                "" if aim is None else f"{aim:.2f}",
            )
    return table


def _service_table(figures: Sequence[ServiceFigures]) -> Table:
    table = Table(title="Fetched by the Python client over gRPC (loopback)")
    for column in ("rows", "tokens/s", "MB/s"):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            figure.name, f"{figure.tokens_per_second:.0f}", f"{figure.megabytes_per_second:.1f}"
        )
    return table
