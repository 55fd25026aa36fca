"""What monitors cost: networks that the worker computes for every token, beside the same runs
without them, in one engine.

Decoding, of an embedded model and of the model of `host.py`, of which a step is host time; and a
long prompt that is sent again, which the prefix cache answers with and without monitors.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.probe_networks import Hidden, ProbeNetwork, ProbeOutputs
from actserve_server.domain.runs import Capture
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from bench.engines import EVERYWHERE, Change, Tapped, apply, idle
from bench.host import IDS, host_options
from bench.ratios import Ratio, compare
from bench.workloads import Request, Workload

LINEAR = "32 linear monitors"
MLP = "one MLP of width 64"
MONITORS, UNITS = 32, 64
RUNS = 64
EMBEDDED = Workload(f"decode, {RUNS} runs", RUNS, prompt_tokens=16, max_tokens=96)
HOST = Workload(f"host model, decode, {RUNS} runs", RUNS, 16, max_tokens=220, ids=IDS)
AIMS = {
    (EMBEDDED.name, LINEAR): 0.97,
    (HOST.name, LINEAR): 0.95,
    (EMBEDDED.name, MLP): 0.97,
}
"""Ratios to the same without monitors that the project aims at."""

PROMPTS, PROMPT_TOKENS = 8, 900
REPEAT_AIM = 1.5
"""What a monitored repeat may take of a plain one."""


@dataclass(frozen=True, slots=True)
class MonitoredRepeat:
    """Medians over prompts of 900 tokens, in ms, until the one token that was asked for."""

    plain: float
    """Of a prompt that was sent before."""
    new: float
    """With 32 linear monitors, for the first time."""
    monitored: float
    """The same once more."""


@dataclass(frozen=True, slots=True)
class MonitorFigures:
    ratios: Sequence[Ratio]
    repeat: MonitoredRepeat


def monitors(info: ModelInfo) -> Mapping[str, Change]:
    """Runs that are watched in the middle of the model at every token, by name."""
    rng = np.random.default_rng(0)
    sites = (Site(HookPoint.RESID_POST, info.layer_count // 2),)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    linear = [ProbeNetwork(sites, random(1, info.width)) for _ in range(MONITORS)]
    mlp = ProbeNetwork(sites, random(1, UNITS), Hidden(random(UNITS, info.width), random(UNITS)))
    return {LINEAR: _watched(linear), MLP: _watched([mlp])}


async def measure_monitors(
    options: EngineOptions, rounds: int, progress: Console
) -> MonitorFigures:
    tapped = await Tapped.start(options)
    try:
        ratios = await _ratios(tapped, EMBEDDED, rounds, progress)
        repeat = await _repeat(tapped, progress)
    finally:
        await tapped.close()
    with host_options() as host:
        tapped = await Tapped.start(host)
        try:
            ratios += await _ratios(tapped, HOST, rounds, progress)
        finally:
            await tapped.close()
    return MonitorFigures(ratios, repeat)


def monitor_tables(figures: MonitorFigures) -> list[Table]:
    table = Table(title="Throughput as a ratio to the same without monitors (median over rounds)")
    for column in ("workload", "without, tokens/s", "every run with", "ratio", "range", "aim"):
        table.add_column(column)
    for each in figures.ratios:
        aim = AIMS.get((each.workload, each.mode))
        table.add_row(
            each.workload,
            f"{each.base_rate:.0f}",
            each.mode,
            f"{each.median:.3f}",
            f"{min(each.ratios):.3f} to {max(each.ratios):.3f}",
            "" if aim is None else f"{aim:.2f}",
        )
    repeat = figures.repeat
    again = Table(title=f"A prompt of {PROMPT_TOKENS} tokens, to its first token")
    for column in ("", "ms", "of a plain repeat"):
        again.add_column(column, justify="right")
    for name, took in (
        ("plain, again", repeat.plain),
        (f"{LINEAR}, new", repeat.new),
        (f"{LINEAR}, again (aim: {REPEAT_AIM})", repeat.monitored),
    ):
        again.add_row(name, f"{took:.0f}", f"{took / repeat.plain:.2f}")
    return [table, again]


def _watched(networks: Sequence[ProbeNetwork]) -> Change:
    outputs = ProbeOutputs(tuple(networks))
    captures = (Capture(outputs.sites, EVERYWHERE, outputs),)
    return lambda run, _: replace(run, captures=captures)


async def _ratios(tapped: Tapped, load: Workload, rounds: int, progress: Console) -> list[Ratio]:
    modes = {name: tapped.doing(change) for name, change in monitors(tapped.info).items()}
    return await compare(tapped.doing(idle), modes, [load], rounds, progress)


async def _repeat(tapped: Tapped, progress: Console) -> MonitoredRepeat:
    load = Workload("repeat", 1, PROMPT_TOKENS, max_tokens=1)
    watched, times = monitors(tapped.info)[LINEAR], []
    for number in range(PROMPTS + 1):
        requests, new = load.requests(2 * number), load.requests(2 * number + 1)
        await _ms(tapped, idle, requests)
        plain = await _ms(tapped, idle, requests)
        first = await _ms(tapped, watched, new)
        times.append((plain, first, await _ms(tapped, watched, new)))
        progress.print(f"plain again, monitored, monitored again: {times[-1]}")
    # The first prompt warms up.
    return MonitoredRepeat(*map(statistics.median, zip(*times[1:], strict=True)))


async def _ms(tapped: Tapped, change: Change, requests: Sequence[Request]) -> float:
    started = time.perf_counter()
    await tapped.rate(apply(change, requests))
    return (time.perf_counter() - started) * 1000
