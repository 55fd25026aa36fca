"""Stores the cells of a sweep as they finish, a batch at a time, beside the sweep itself.

What comes while a batch is written is the next one. A sweep waits for its writer only if the
database is slower than the model.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog

from actserve_server.storage.stored_cells import StoredCells, SweepKey

BATCH = 64
"""Cells that are written together at most: nobody else writes meanwhile."""
_WAITING = 4 * BATCH
"""Cells that wait to be written."""
_OVER = None

log = structlog.get_logger("actserve.steering")


class CellWriter:
    def __init__(self, stored: StoredCells, key: SweepKey) -> None:
        self._stored = stored
        self._key = key
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(_WAITING)

    async def add(self, number: int, message: bytes) -> None:
        """Has the message of a cell stored."""
        await self._queue.put((number, message))

    async def _write(self) -> None:
        over = False
        while not over:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            over = batch[-1] is _OVER
            messages = dict(each for each in batch if each is not None)
            try:
                await self._stored.write(self._key, messages)
            except Exception:
                # A sweep goes on without its database, whatever ails that.
                log.exception("cells of a sweep are not stored", cells=len(messages))


@asynccontextmanager
async def writing(stored: StoredCells, key: SweepKey) -> AsyncGenerator[CellWriter, None]:
    """Stores cells of a sweep. At the end, also that of a sweep which is cancelled, waits for those
    that have finished."""
    writer = CellWriter(stored, key)
    task = asyncio.create_task(writer._write())
    try:
        yield writer
    finally:
        await writer._queue.put(_OVER)
        await task
