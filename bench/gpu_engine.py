"""`bench/gpu.sh engine`: the whole engine on a GPU, with taps in CUDA graphs and without.

Starts our engine with taps in CUDA graphs, and proves it as a server does when it starts. Then runs
of many kinds at once are compared with some of them alone, and with the same where no step is
replayed with taps; both ways are timed, and plain vLLM beside them. Prints one JSON.

The model is made on the spot: of 32 layers of width 64, where a step is host time, or with
`--shape 8b` in the shape of an 8B model but for its vocabulary, with weights that vLLM makes up.
`--pieces` leaves taps in CUDA graphs out, and then runs on a CPU too.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig

from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import REPLAYED_GRAPH
from actserve_server.engine.selftest import self_test, together
from actserve_server.engine.selftest_graphs import prove_graphs
from actserve_server.engine.selftest_replayed import TOLERANCE
from actserve_server.engine.vllm import startup
from actserve_server.engine.vllm.options import GPU_TAPS_PIECES, GPU_TAPS_TRITON, EngineOptions
from bench.engines import EVERYWHERE, Stock, Tapped, apply, modes
from bench.gpu_kernels import write
from bench.host import IDS, make_model
from bench.workloads import Workload

AT_ONCE = (64, 256)
CONTEXT = 256
"""Positions."""
MODES = ("idle", "one layer", "all layers", "own vector each")
"""That are timed; of `bench.engines.modes`."""
MIXED = 64
ALONE = 6
"""Of the mixed runs, so many are run again by themselves."""
BUDGET_S = 170
"""Nothing is begun after so long, so that the whole ends within four minutes."""

_Rows = Mapping[Site, np.ndarray]


@dataclass(slots=True)
class Clock:
    """What was left out for want of time."""

    started: float
    left_out: list[str]

    def has_time_for(self, what: str) -> bool:
        if time.monotonic() - self.started < BUDGET_S:
            return True
        self.left_out.append(what)
        return False


def make_8b(folder: Path) -> Path:
    """The folder of a small model, whose configuration is then that of a large one."""
    made = make_model(folder)
    config = LlamaConfig.from_pretrained(made)
    config.update(
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        }
    )
    config.save_pretrained(made)
    return made


def loads(count: int) -> Workload:
    return Workload(f"decode, {count} runs", count, prompt_tokens=16, max_tokens=64, ids=IDS)


async def rates(tapped: Tapped, at_once: Sequence[int], way: str, clock: Clock) -> dict[str, float]:
    """Tokens a second, by mode and number of runs."""
    found: dict[str, float] = {}
    for count in at_once:
        for name in MODES:
            what = f"{name}, {count} runs"
            if not clock.has_time_for(f"{way}: {what}"):
                continue
            rate = tapped.doing(modes(tapped.info)[name])
            await rate(loads(count).requests(0))  # Once, so that nothing is met for the first time.
            found[what] = round(await rate(loads(count).requests(1)), 1)
    return found


def mixed(tapped: Tapped) -> list[Run]:
    """Runs of every mode, all of which read two sites as well."""
    info = tapped.info
    sites = (Site(HookPoint.RESID_POST, info.layer_count // 2), Site(HookPoint.FINAL_NORM))
    ways = list(modes(info).values())
    requests = Workload("mixed", MIXED, 12, 24, IDS).requests(3)
    made = []
    for number, request in enumerate(requests):
        (run,) = apply(ways[number % len(ways)], [request])
        made.append(replace(run, captures=(*run.captures, Capture(sites, EVERYWHERE))))
    return made


async def rows_of(tapped: Tapped, run: Run) -> _Rows:
    number = len(run.captures) - 1
    sites = run.captures[number].sites
    count = len(run.token_ids) + run.sampling.max_tokens - 1
    found = {
        site: np.full((count, tapped.info.at(site).width), np.nan, np.float32) for site in sites
    }
    first = sum(len(each.sites) for each in run.captures[:-1])
    async with aclosing(tapped.engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows) and event.site_index >= first:
                values = to_float32(event.bits, tapped.info.element_type)
                found[sites[event.site_index - first]][np.asarray(event.positions)] = values
    return found


def furthest(some: Sequence[_Rows], others: Sequence[_Rows]) -> float:
    """The largest distance of two rows, of their norm. Of prompts alone: what is generated after
    them may be another token, by rounding."""
    off = 0.0
    for mine, theirs in zip(some, others, strict=True):
        for site, rows in mine.items():
            a, b = rows[:12], theirs[site][:12]
            size = np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)
            each = 2 * np.linalg.norm(a - b, axis=1) / np.where(size > 0, size, 1)
            off = max(off, float(np.nan_to_num(each, nan=np.inf).max()))
    return off


async def measure(options: EngineOptions, at_once: Sequence[int]) -> dict[str, Any]:
    clock = Clock(time.monotonic(), [])
    found: dict[str, Any] = {"part": "engine", "torch": torch.__version__, "wrong": {}}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    tapped = await Tapped.start(options)
    try:
        engine, wrong = tapped.engine, found["wrong"]
        found["start_s"] = round(time.monotonic() - clock.started, 1)
        tested = await self_test(engine)
        wrong |= {f"self-test, {point}": why for point, why in tested.failures.items()}
        dropped = await prove_graphs(engine, tested.info)
        wrong |= {f"self-test, graph {name}": why for name, why in dropped.items()}
        found["graphs"] = sorted(engine.graphs)
        runs = mixed(tapped)
        replays = REPLAYED_GRAPH in engine.graphs
        tolerance = TOLERANCE[tapped.info.element_type]
        both = await together(*(rows_of(tapped, run) for run in runs))
        alone = [await rows_of(tapped, again(run)) for run in runs[:ALONE]]
        found["isolation"] = furthest(both[:ALONE], alone)
        if found["isolation"] > tolerance:
            wrong["isolation"] = f"rows beside others are off by {found['isolation']:.2g}"
        tokens_s = found["tokens_s"] = {}
        if replays:
            tokens_s["replayed"] = await rates(tapped, at_once, "replayed", clock)
            await engine.drop_graph(REPLAYED_GRAPH)
        pieces = await together(*(rows_of(tapped, again(run)) for run in runs))
        found["parity"] = furthest(both, pieces)
        if found["parity"] > tolerance:
            wrong["parity"] = f"rows of replayed steps are off by {found['parity']:.2g}"
        tokens_s["pieces"] = await rates(tapped, at_once, "pieces", clock)
    finally:
        await tapped.close()
    if clock.has_time_for("plain vLLM"):
        stock = Stock.like_ours(options)
        try:
            plain = found["tokens_s"]["plain vLLM"] = {}
            for count in at_once:
                await stock.rate(loads(count).requests(0))
                plain[f"{count} runs"] = round(await stock.rate(loads(count).requests(1)), 1)
        finally:
            stock.close()
    found["left_out"] = clock.left_out
    found["seconds"] = round(time.monotonic() - clock.started, 1)
    return found


def again(run: Run) -> Run:
    return replace(run, id=f"{run.id}-again-{time.monotonic_ns()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", action="store_true")
    parser.add_argument("--shape", choices=("host", "8b"), default="host")
    parser.add_argument("--out", type=Path, help="where the JSON goes: vLLM writes to the output")
    parser.add_argument("--runs", type=int, nargs="+", default=AT_ONCE)
    asked = parser.parse_args()
    if not asked.pieces and not torch.cuda.is_available():
        print("no GPU is seen here, so the engine was not run", file=sys.stderr)
        return 3
    large = asked.shape == "8b"
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(
            model_id=asked.shape,
            model_path=str((make_8b if large else make_model)(Path(folder))),
            dtype="bfloat16" if large else "float32",
            max_model_len=CONTEXT,
            max_num_seqs=max(asked.runs),
            kv_cache_memory_bytes=(16 if large else 1) << 30,
            gpu_taps=GPU_TAPS_PIECES if asked.pieces else GPU_TAPS_TRITON,
        )
        with patch.object(startup, "engine_args", _made_up if large else startup.engine_args):
            found = asyncio.run(measure(options, asked.runs))
    found["shape"] = asked.shape
    write(found, asked.out)
    return 1 if found["wrong"] else 0


_ARGS = startup.engine_args


def _made_up(options: EngineOptions) -> dict[str, Any]:
    return {**_ARGS(options), "load_format": "dummy"}


if __name__ == "__main__":
    sys.exit(main())
