"""All cells of a sweep, and no more at once than its reader and its engine can take."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Sampling
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.merge import BUFFERED_EVENTS
from actserve_server.steering.sweep_cells import Asked, CellRequest, CellResult, Cells
from actserve_server.steering.sweep_grid import Axes, Cell, Grid
from actserve_server.steering.sweep_scores import Scores
from actserve_server.steering.sweeps import sweep

GRID = Grid(1, (Axes(coefficients=500),))
ASKED = Asked(answers=((1, 2), (3,)), scores=Scores([]), perplexity=False, samples=True)
RUNNING = 4


class Counts:
    prompt_tokens = 0
    output_tokens = 0


class Sweeping:
    """A sweep of 500 cells with three runs each."""

    def __init__(self, **faults: Any) -> None:
        self.fake = FakeEngine()
        self.engine = AdmittedEngine(self.fake, AdmissionLimits(max_running=RUNNING))
        self.admitted = self.engine.enter("")
        self.prepared: list[int] = []
        self.done: list[int] = []
        self.most_in_line = 0
        self.fail_at: dict[int, ActserveError] = faults.get("fail_at", {})

    def stream(self) -> Any:
        cells = Cells(self.engine, self.admitted, ASKED, "", "call", Counts())
        return sweep(self.admitted, GRID, range(len(GRID)), cells, self.prepare, self.told)

    async def prepare(self, cell: Cell) -> CellRequest:
        self.prepared.append(cell.number)
        if cell.number in self.fail_at:
            raise self.fail_at[cell.number]
        return CellRequest(prompt_ids=(5, 6), changes=(), sampling=Sampling(max_tokens=2, seed=1))

    async def watch(self) -> None:
        while True:
            in_line = self.engine.running + self.engine.waiting
            self.most_in_line = max(self.most_in_line, in_line)
            await asyncio.sleep(0)

    async def told(self, cell: Cell, result: CellResult) -> None:
        assert result.text
        self.done.append(cell.number)


async def settled(sweeping: Sweeping) -> None:
    before = -1
    while before != sweeping.fake.counters.started:
        before = sweeping.fake.counters.started
        for _ in range(200):
            await asyncio.sleep(0)


async def test_without_a_reader_no_more_cells_are_prepared_than_may_run() -> None:
    sweeping = Sweeping()
    async with aclosing(sweeping.stream()) as outcomes:
        await anext(outcomes)
        await settled(sweeping)
        assert len(sweeping.prepared) <= 1 + RUNNING + BUFFERED_EVENTS + 1
        assert not sweeping.fake.counters.running, "a cell that nobody reads holds a run"
        assert sweeping.engine.running == sweeping.engine.waiting == 0
        numbers = {cell.number async for cell, _ in outcomes}
    assert len(numbers) == len(GRID) - 1
    assert sorted(sweeping.done) == [*range(len(GRID))]
    assert sweeping.fake.counters.most_running == RUNNING


async def test_others_wait_for_one_run_and_not_for_all_of_the_cells_that_are_open() -> None:
    sweeping = Sweeping()
    watching = asyncio.create_task(sweeping.watch())
    async for _ in sweeping.stream():
        pass
    watching.cancel()
    assert sweeping.most_in_line == RUNNING


async def test_a_cell_that_cannot_run_is_told_and_the_others_run() -> None:
    bad = ActserveError(Reason.PROMPT_EMPTY, "empty")
    sweeping = Sweeping(fail_at={3: bad, 499: bad})
    outcomes = {cell.number: outcome async for cell, outcome in sweeping.stream()}
    assert [number for number, outcome in outcomes.items() if outcome is bad] == [3, 499]
    assert len(outcomes) == len(GRID)
    assert not {3, 499} & {*sweeping.done}


@pytest.mark.parametrize("reason", [Reason.ENGINE_DEAD, Reason.DRAINING])
async def test_what_would_end_every_cell_ends_the_sweep(reason: Reason) -> None:
    sweeping = Sweeping(fail_at={9: ActserveError(reason, "over")})
    with pytest.raises(ActserveError, match="over"):
        async for _ in sweeping.stream():
            pass
    assert not sweeping.fake.counters.running
    assert sweeping.fake.counters.started < 3 * len(GRID)
