"""What has finished is stored, some cells at a time, whatever becomes of the sweep."""

import asyncio
from collections.abc import Mapping

import pytest

from actserve_server.steering.cell_writer import BATCH, writing
from actserve_server.storage.stored_cells import StoredCells, SweepKey

KEY = SweepKey("me", b"1" * 32)


class Slow(StoredCells):
    """Takes a while for each batch."""

    def __init__(self) -> None:
        self.batches: list[Mapping[int, bytes]] = []

    async def write(self, key: SweepKey, messages: Mapping[int, bytes]) -> bool:
        assert key == KEY
        await asyncio.sleep(0.001)
        self.batches.append(messages)
        return True

    @property
    def written(self) -> dict[int, bytes]:
        return {number: message for batch in self.batches for number, message in batch.items()}


def message(number: int) -> bytes:
    return f"cell {number}".encode()


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 20 * BATCH + 3])
async def test_every_cell_is_written_in_batches(count: int) -> None:
    slow = Slow()
    async with writing(slow, KEY) as writer:
        for number in range(count):
            await writer.add(number, message(number))
    assert slow.written == {number: message(number) for number in range(count)}
    assert max(map(len, slow.batches), default=0) <= BATCH
    # Far fewer writes than cells: what comes during one is the next.
    assert len(slow.batches) <= 2 + count // BATCH * 2


async def test_what_finished_is_written_although_the_sweep_is_cancelled() -> None:
    slow, added = Slow(), asyncio.Event()

    async def sweep() -> None:
        async with writing(slow, KEY) as writer:
            for number in range(100):
                await writer.add(number, message(number))
            added.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(sweep())
    await added.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(slow.written) == 100


class Broken(Slow):
    """A database whose answer nobody foresaw, at first."""

    async def write(self, key: SweepKey, messages: Mapping[int, bytes]) -> bool:
        if not self.batches:
            self.batches.append({})
            raise ValueError("the database is not itself")
        return await super().write(key, messages)


async def test_a_sweep_goes_on_whatever_ails_its_database() -> None:
    broken, count = Broken(), 20 * BATCH
    async with asyncio.timeout(10), writing(broken, KEY) as writer:
        for number in range(count):
            await writer.add(number, message(number))
    assert count - BATCH <= len(broken.written) < count
