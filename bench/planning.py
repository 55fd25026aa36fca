"""What planning a step costs the worker, without an engine: host time that no device hides.

Every step of a case is planned as the worker plans it. Where the batch changes, a step also ends a
run and starts another, vectors included. Times are the processor time of the one thread that
plans, so that other work on the machine does not count.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actserve_server.domain.operations import Add
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.layout import Layout
from actserve_server.engine.vllm.step_batch import Batch, Model
from actserve_server.engine.vllm.step_plan import Planner
from actserve_server.engine.vllm.tapped_run import TappedRun
from actserve_server.engine.vllm.wire import taps_of

LAYERS, WIDTH = 32, 64
STEPS = 50
"""Timed in each case."""
BANK_BYTES = 16 << 20
_WARM_UP = 2
"""Steps before those."""
PROMPT_TOKENS = 4000
"""Of the runs that select ranges."""
_EVERYWHERE = Spans(((0, NO_END),))


def scattered(count: int) -> Spans:
    """So many ranges of a position each, none next to another."""
    return Spans(tuple((first, first + 1) for first in range(0, 2 * count, 2)))


_SCATTERED = scattered(2000)
_DENSE = Spans(((0, PROMPT_TOKENS),))


@dataclass(frozen=True, slots=True)
class Case:
    """Runs that are alike, and how each step takes them on."""

    name: str
    runs: int
    layers: int = LAYERS
    vectors: int = 0
    """That each run adds at every layer, all its own; with none it is captured there."""
    where: Spans = _EVERYWHERE
    first: int = 0
    """The position of the first step."""
    tokens: int = 1
    """Of each run in one step."""
    changes: bool = False
    """Whether every step has a new run in place of an old one."""


CASES = (
    Case("decode, captured", 64),
    Case("decode, captured", 256),
    Case("decode, captured, one run replaced each step", 256, changes=True),
    Case("decode, own vectors", 64, vectors=1),
    Case("decode, own vectors", 256, vectors=1),
    Case("decode, own vectors, one run replaced each step", 256, vectors=1, changes=True),
    Case("prompt of 4,000 tokens, all captured", 1, where=_DENSE, tokens=PROMPT_TOKENS),
    Case("the same, in 2,000 ranges", 1, where=_SCATTERED, tokens=PROMPT_TOKENS),
    Case("decode after such prompts, all captured", 64, where=_DENSE, first=PROMPT_TOKENS),
    Case("the same, in 2,000 ranges", 64, where=_SCATTERED, first=PROMPT_TOKENS),
)


@dataclass(slots=True)
class Reached:
    """A run, and the position that its next step begins at."""

    run: TappedRun
    position: int


@dataclass(frozen=True, slots=True)
class PlanningFigures:
    """Of one case, over its steps: processor time of the planning thread."""

    name: str
    runs: int
    median_ms: float
    max_ms: float


def measure_planning(progress: Console, cases: Sequence[Case] = CASES) -> list[PlanningFigures]:
    figures = []
    for case in cases:
        took_ms = step_times_ms(case)
        figures.append(
            PlanningFigures(case.name, case.runs, statistics.median(took_ms), max(took_ms))
        )
        progress.print(f"planning: {figures[-1]}")
    return figures


def step_times_ms(case: Case, steps: int = STEPS) -> list[float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Else part of the work would be in threads that are not counted.
    try:
        return _step_times_ms(case, steps)
    finally:
        torch.set_num_threads(threads)


def planning_tables(figures: Sequence[PlanningFigures]) -> list[Table]:
    table = Table(
        title=f"Planning a step of runs with {LAYERS} sites each (processor time, no engine)"
    )
    table.add_column("step")
    for column in ("runs", "median ms", "max ms"):
        table.add_column(column, justify="right")
    for each in figures:
        table.add_row(each.name, str(each.runs), f"{each.median_ms:.2f}", f"{each.max_ms:.2f}")
    return [table]


def _step_times_ms(case: Case, steps: int) -> list[float]:
    bank = VectorBank(torch.device("cpu"), BANK_BYTES)
    planner = Planner(bank, _model(case.layers))
    wanted = [_run(case, number) for number in range(case.runs + _WARM_UP + steps)]
    batch = [
        Reached(_start(run, key, bank), case.first) for key, run in enumerate(wanted[: case.runs])
    ]
    took = []
    for step in range(_WARM_UP + steps):
        before = time.thread_time()
        if case.changes:
            planner.forget()
            batch.pop(0).run.end(bank)
            key = case.runs + step
            batch.append(Reached(_start(wanted[key], key, bank), 0))
        started = time.thread_time()
        shown, runs = _batch(batch, case.tokens), {_id(each): each.run for each in batch}
        aside = time.thread_time() - started
        planner.plan(shown, runs)
        took.append((time.thread_time() - before - aside) * 1e3)
        if case.tokens == 1:
            for each in batch:
                each.position += 1
    return took[_WARM_UP:]


def _run(case: Case, number: int) -> Run:
    sites = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(case.layers))
    where = Selection(case.where)
    run = Run(id=f"planned-{number}", token_ids=(1,))
    if not case.vectors:
        return replace(run, captures=(Capture(sites, where),))
    vectors = np.random.default_rng(number).normal(size=(case.vectors, WIDTH)).astype(np.float32)
    return replace(
        run, interventions=tuple(Intervention(sites, where, Add(vector)) for vector in vectors)
    )


def _model(layers: int) -> Model:
    layout = Layout()
    for layer in range(layers):
        layout.add_place([(Site(HookPoint.RESID_POST, layer), True)])
    return Model(layout)


def _start(run: Run, key: int, bank: VectorBank) -> TappedRun:
    """As the worker starts a run."""
    taps = taps_of(run, key)
    assert taps is not None
    return TappedRun.start(taps, bank)


def _id(reached: Reached) -> str:
    return str(reached.run.taps.key)


def _batch(batch: Sequence[Reached], tokens: int) -> Batch:
    """A step of so many tokens of each run, as the worker shows it."""
    positions = np.array([each.position for each in batch])
    return Batch(
        request_ids=[_id(each) for each in batch],
        starts=tokens * np.arange(len(batch) + 1),
        computed=positions,
        tokens=np.zeros((len(batch), int(positions.max()) + tokens), np.int32),
        prompt_tokens=np.ones(len(batch), np.int64),
    )
