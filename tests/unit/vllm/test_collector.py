"""Rows reach the inbox of their run, and nobody waits for what has already come."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest

from actserve_server.domain.operations import Zero
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.records import (
    ReceiptsRecord,
    RowsRecord,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingReader, RingWriter
from tests.unit.vllm.steps import ALL, change, edits_of

WIDTHS = (8, 3)
"""Bytes of a row of each site."""


@dataclass(frozen=True)
class Pair:
    collector: Collector
    writer: RingWriter

    def send(self, *rows: tuple[int, int], number: int = 0) -> None:
        """Rows as (key, position); the bytes of each are its key."""
        keys, positions = np.array(rows).T.copy()
        data = tuple(np.repeat(keys[:, None], width, axis=1).astype(np.uint8) for width in WIDTHS)
        write_rows(self.writer, RowsRecord(number, keys, positions, data))


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    reader = RingReader(capacity=1 << 16)
    collector = Collector(reader, asyncio.get_running_loop())
    yield Pair(collector, RingWriter(reader.folder))
    collector.close()


async def _until_complete(pair: Pair, inbox: Inbox, end: int) -> None:
    async with asyncio.timeout(5.0):
        while True:
            arrival = pair.collector.arrival()
            inbox.update()
            if inbox.complete(end):
                arrival.close()
                return
            await arrival


def _rows(blocks: list[Block]) -> list[tuple[int, int]]:
    """Rows as they were sent."""
    for block in blocks:
        assert [data.shape for data in block.data] == [(len(block.positions), n) for n in WIDTHS]
        assert all((data == block.data[0][0, 0]).all() for data in block.data)
    return [(int(block.data[0][0, 0]), int(at)) for block in blocks for at in block.positions]


async def test_rows_reach_their_run_and_capture_and_no_other(pair: Pair) -> None:
    first, second = Inbox([ALL.spans, ALL.spans], []), Inbox([ALL.spans], [])
    pair.collector.open(1, first)
    pair.collector.open(2, second)
    pair.send((1, 0), (1, 1), (2, 0), (99, 0))  # The last is of a run that is gone.
    pair.send((1, 0), (1, 1), (1, 2), number=1)
    pair.send((2, 1), (1, 2))
    await _until_complete(pair, first, 3)
    await _until_complete(pair, second, 2)
    assert [_rows(blocks) for blocks in first.take(9)] == [[(1, 0), (1, 1), (1, 2)]] * 2
    assert [_rows(blocks) for blocks in second.take(9)] == [[(2, 0), (2, 1)]]


async def test_receipts_reach_their_run_and_edit_with_what_they_note(pair: Pair) -> None:
    edits = edits_of(change(Zero(), "resid_post.0", "resid_post.1"))
    first, second = Inbox([], edits), Inbox([], edits)
    pair.collector.open(1, first)
    pair.collector.open(2, second)
    receipts = [  # Key, edit, position, heads changed and by how much.
        (1, 0, 0, 1, 0.5),
        (1, 0, 1, 1, 0.5),
        (1, 1, 0, 1, 1.0),
        (1, 1, 1, 0, 0.0),
        (2, 1, 0, 1, 8.0),
        (2, 0, 0, 0, 0.0),
        (99, 0, 0, 0, 0.0),
    ]
    table = np.array(receipts)
    keys, numbers, positions = table[:, :3].astype(np.int64).T.copy()
    write_receipts(pair.writer, ReceiptsRecord(keys, numbers, positions, table[:, 3:]))
    await _until_complete(pair, first, 2)
    await _until_complete(pair, second, 1)
    (one,), (two,) = first.reports([7, 7]), second.reports([7])
    assert (one.rows, one.changed_rows, one.mean_relative_change) == (4, 3, 0.5)
    assert (two.rows, two.changed_rows, two.mean_relative_change) == (2, 1, 4.0)


async def test_a_run_that_ends_leaves_no_inbox(pair: Pair) -> None:
    pair.collector.open(1, Inbox([ALL.spans], []))
    assert pair.collector.open_inboxes == 1
    pair.collector.close_inbox(1)
    pair.collector.close_inbox(1)
    assert pair.collector.open_inboxes == 0


async def test_what_arrives_between_taking_a_wait_and_starting_it_ends_it(pair: Pair) -> None:
    arrival = pair.collector.arrival()
    pair.send((1, 0))
    await asyncio.sleep(0.05)  # The wake-up has come and gone.
    async with asyncio.timeout(1.0):
        await arrival


async def test_a_collector_that_failed_says_so(pair: Pair) -> None:
    pair.collector.check()
    arrival = pair.collector.arrival()
    pair.writer.write([np.array([77, 0, 0, 0], np.int64)])  # A kind of record that is not known.
    async with asyncio.timeout(1.0):
        await arrival
    with pytest.raises(RuntimeError, match="no longer be collected"):
        pair.collector.check()
