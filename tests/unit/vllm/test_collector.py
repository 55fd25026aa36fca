"""Rows reach the inbox of their run, and nobody waits for what has already come."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.inbox import Inbox
from actserve_server.engine.vllm.points import Tap
from actserve_server.engine.vllm.records import (
    ReceiptsRecord,
    RowsRecord,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingReader, RingWriter

ALL = Spans(((0, NO_END),))


@dataclass(frozen=True)
class Pair:
    collector: Collector
    writer: RingWriter

    def send(self, key: int, *positions: int) -> None:
        at = np.array(positions)
        data = np.zeros((1, len(at), 8), np.uint8)
        write_rows(self.writer, RowsRecord((Tap(2, 1),), np.full(len(at), key), at, data))


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


async def test_rows_and_receipts_reach_their_run_and_no_other(pair: Pair) -> None:
    first, second = Inbox(ALL, [ALL]), Inbox(ALL, [])
    pair.collector.open(1, first)
    pair.collector.open(2, second)
    pair.send(1, 0, 1)
    pair.send(2, 0)
    pair.send(99, 0)  # A run that is gone.
    receipts = ReceiptsRecord(np.array([1, 1]), np.array([0, 0]), np.array([0, 1]))
    write_receipts(pair.writer, receipts)
    await _until_complete(pair, first, 2)
    await _until_complete(pair, second, 1)
    assert [len(positions) for positions, _ in first.take(9)] == [2]
    assert [len(positions) for positions, _ in second.take(9)] == [1]


async def test_what_arrives_between_taking_a_wait_and_starting_it_ends_it(pair: Pair) -> None:
    arrival = pair.collector.arrival()
    pair.send(1, 0)
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
