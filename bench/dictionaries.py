"""What dictionaries cost: features read at one site for every token, and features changed there,
beside the same runs without, in one engine.

The encoder is of random numbers: what a feature stands for takes no time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Features
from actserve_server.domain.projection import JumpReLU, Projected, Projection, TopK
from actserve_server.domain.runs import Capture, Intervention
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from bench.engines import EVERYWHERE, Change, Tapped, idle
from bench.ratios import Ratio, compare
from bench.workloads import Workload

FEATURES, TOP = 16_384, 20
READ = f"{FEATURES:,} features, the top {TOP}"
CHANGED = "one feature of a JumpReLU changed"
CHANGED_TOP_K = f"one feature of a top-k of {FEATURES:,} changed"
RUNS = 64
DECODE = Workload(f"decode, {RUNS} runs", RUNS, prompt_tokens=16, max_tokens=96)
ALONE = Workload("decode, 1 run", 1, prompt_tokens=16, max_tokens=96)
AIMS = {(DECODE.name, READ): 0.8}
"""Ratios to the same without that the project aims at."""


@dataclass(frozen=True, slots=True)
class DictionaryFigures:
    ratios: Sequence[Ratio]


def changes(info: ModelInfo) -> Mapping[str, Change]:
    """Runs that use a dictionary in the middle of the model at every token, by name."""
    rng = np.random.default_rng(0)
    sites = (Site(HookPoint.RESID_POST, info.layer_count // 2),)
    encoder = rng.standard_normal((FEATURES, info.width), np.float32) / np.float32(info.width**0.5)
    bias = np.zeros(FEATURES, np.float32)
    jumps = Projection(encoder, bias, JumpReLU(np.ones(FEATURES, np.float32)), lasting=True)
    tops = Projection(encoder, bias, TopK(32), lasting=True)
    one = Projection(encoder[:1], bias[:1], JumpReLU(np.ones(1, np.float32)))
    # As a readout of a dictionary has it.
    read = replace(jumps, element_type=info.encoder_type)
    capture = Capture(sites, EVERYWHERE, Projected(read, TOP))
    return {
        READ: lambda run, _: replace(run, captures=(capture,)),
        CHANGED: _changed(sites, one, encoder[:1]),
        CHANGED_TOP_K: _changed(sites, tops, encoder[:1]),
    }


async def measure_dictionaries(
    options: EngineOptions, rounds: int, progress: Console
) -> DictionaryFigures:
    tapped = await Tapped.start(options)
    try:
        modes = {name: tapped.doing(change) for name, change in changes(tapped.info).items()}
        loads = [DECODE, ALONE]
        return DictionaryFigures(await compare(tapped.doing(idle), modes, loads, rounds, progress))
    finally:
        await tapped.close()


def dictionary_tables(figures: DictionaryFigures) -> list[Table]:
    table = Table(title="Throughput as a ratio to the same without (median over rounds)")
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
    return [table]


def _changed(sites: tuple[Site, ...], reads: Projection, direction: np.ndarray) -> Change:
    operation = Features(
        reads=reads,
        columns=np.zeros(1, np.int64),
        directions=direction,
        gains=np.zeros(1, np.float32),
        offsets=np.ones(1, np.float32),
    )
    intervention = Intervention(sites, EVERYWHERE, operation)
    return lambda run, _: replace(run, interventions=(intervention,))
