"""All cells of a sweep: each is prepared when its turn comes, runs, and ends with what came of it
or with an error of its own.

So as many cells as there may be take no more memory than those that run. An error that would end
all of them ends the sweep.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial

from actserve_server.domain.errors import OF_THE_CALL, ActserveError
from actserve_server.engine.admission import AdmittedCall
from actserve_server.stages import Stage, stage
from actserve_server.steering.sweep_cells import CellRequest, CellResult, Cells
from actserve_server.steering.sweep_grid import Cell, Grid

Prepare = Callable[[Cell], Awaitable[CellRequest]]
"""Checks a cell. Raises why it cannot run."""

Outcome = CellResult | ActserveError


async def sweep(
    admitted: AdmittedCall,
    grid: Grid,
    numbers: Iterable[int],
    cells: Cells,
    prepare: Prepare,
    done: Callable[[Cell, CellResult], Awaitable[None]],
) -> AsyncGenerator[tuple[Cell, Outcome], None]:
    """What comes of the cells of these numbers, in the order in which they finish. `done` is told
    of each that was served before anybody reads it here: a reader may be slow."""

    async def outcome(number: int) -> AsyncGenerator[tuple[Cell, Outcome], None]:
        cell = grid[number]
        try:
            with stage(Stage.CELL, {"actserve.cell": number}):
                result: Outcome = await cells.run(number, await prepare(cell))
            await done(cell, result)
        except ActserveError as error:
            if error.reason in OF_THE_CALL:
                raise
            result = error
        yield cell, result

    async with aclosing(admitted.merge([partial(outcome, each) for each in numbers])) as events:
        async for _, event in events:
            yield event
