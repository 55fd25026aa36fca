"""Rows reach the inbox of their run, and nobody waits for what has already come."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Zero
from actserve_server.engine.vllm import collector
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.records import (
    FailureRecord,
    ReceiptsRecord,
    write_failure,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingReader, RingWriter
from actserve_server.engine.vllm.step_plan import REUSED
from tests.unit.vllm.steps import ALL, change, edits_of

WIDTHS = (8, 3)
"""Bytes of a row of each site."""


@dataclass(frozen=True)
class Pair:
    collector: Collector
    writer: RingWriter
    fills: list[float]
    """Which part of the ring was full, each time it was emptied."""

    def open(self, key: int, inbox: Inbox) -> None:
        assert self.collector.open(key, inbox, self.collector.failures)

    def send(self, *rows: tuple[int, int], number: int = 0, wake: bool = True) -> None:
        """Rows as (key, position); the bytes of each are its key."""
        keys, positions = np.array(rows).T.copy()
        made = [np.repeat(keys[:, None], width, axis=1).astype(np.uint8) for width in WIDTHS]
        columns = [torch.from_numpy(each) for each in made]
        write_rows(self.writer, number, keys, positions, columns, wake=wake)

    def fail(self, *keys: int) -> None:
        write_failure(self.writer, FailureRecord(np.array(keys), "OutOfMemoryError"))


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    reader = RingReader(capacity=1 << 16)
    fills: list[float] = []
    collector = Collector(reader, asyncio.get_running_loop(), fills.append)
    yield Pair(collector, RingWriter(reader.folder), fills)
    collector.close()


async def _until_complete(inbox: Inbox, end: int) -> None:
    async with asyncio.timeout(5.0):
        while True:
            inbox.expect()
            if inbox.complete(end):
                return
            await inbox.arrival()


def _rows(blocks: list[Block]) -> list[tuple[int, int]]:
    """Rows as they were sent."""
    for block in blocks:
        shapes = [data.shape for data in block.sites()]
        assert shapes == [(len(block.positions), width) for width in WIDTHS]
        assert (block.data == block.data[0, 0]).all()
    return [(int(block.data[0, 0]), int(at)) for block in blocks for at in block.positions]


async def test_rows_reach_their_run_and_capture_and_no_other(pair: Pair) -> None:
    first, second = Inbox([ALL.spans, ALL.spans], []), Inbox([ALL.spans], [])
    pair.open(1, first)
    pair.open(2, second)
    pair.send((1, 0), (1, 1), (2, 0), (99, 0))  # The last is of a run that is gone.
    pair.send((1, 0), (1, 1), (1, 2), number=1)
    pair.send((2, 1), (1, 2))
    await _until_complete(first, 3)
    await _until_complete(second, 2)
    assert [_rows(blocks) for blocks in first.take(9)] == [[(1, 0), (1, 1), (1, 2)]] * 2
    assert [_rows(blocks) for blocks in second.take(9)] == [[(2, 0), (2, 1)]]


async def test_it_tells_how_full_the_ring_was_whenever_it_was_emptied(pair: Pair) -> None:
    for _ in range(40):
        pair.send((1, 0), wake=False)
    pair.collector.collect(now=True)
    pair.collector.collect(now=True)  # There is nothing.
    (full,) = pair.fills
    pair.send((1, 0), wake=False)
    pair.collector.collect(now=True)
    assert full == pytest.approx(40 * pair.fills[1])
    assert 0 < full < 1


async def test_receipts_reach_their_run_and_edit_with_what_they_note(pair: Pair) -> None:
    edits = edits_of(change(Zero(), "q.0", "q.1"), change(Zero(), "v.0"))
    first, second = Inbox([], edits), Inbox([], edits)
    pair.open(1, first)
    pair.open(2, second)
    receipts = [  # Key, edit, position, rows changed and by how much, at how many sites.
        (1, 0, 0, 1, 0.5, 2),
        (1, 0, 1, 1, 0.5, 2),
        (1, 1, 0, 1, 1.0, 1),
        (1, 1, 1, 0, 0.0, 1),
        (2, 1, 0, 1, 8.0, 1),
        (2, 0, 0, 0, 0.0, 2),
        (99, 0, 0, 0, 0.0, 2),
    ]
    table = np.array(receipts)
    keys, numbers, positions = table[:, :3].astype(np.int64).T.copy()
    changes = np.pad(table[:, 3:], [(0, 0), (0, 1)]).astype(np.float32)
    write_receipts(pair.writer, ReceiptsRecord(keys, numbers, positions, changes))
    await _until_complete(first, 2)
    await _until_complete(second, 1)
    found = [
        (report.rows, report.changed_rows, report.mean_relative_change)
        for report in (*first.reports([7, 7]), *second.reports([7]))
    ]
    assert found == [(4, 2, 0.25), (2, 1, 0.5), (2, 0, 0.0), (1, 1, 8.0)]


async def test_rows_that_wake_nobody_are_collected_on_the_loop(pair: Pair) -> None:
    first, second = Inbox([ALL.spans], []), Inbox([ALL.spans], [])
    pair.open(1, first)
    pair.open(2, second)
    pair.send((1, 0), (2, 0), wake=False)
    second.expect()
    assert not first.complete(1)
    pair.collector.collect(now=True)
    assert first.complete(1)
    await asyncio.wait_for(second.arrival(), 5.0)
    assert [_rows(blocks) for blocks in second.take(9)] == [[(2, 0)]]


async def test_rows_of_several_steps_reach_each_run_together(pair: Pair) -> None:
    inboxes = {key: Inbox([ALL.spans, ALL.spans], []) for key in (1, 2)}
    for key, inbox in inboxes.items():
        pair.open(key, inbox)
    pair.collector.collect(now=True)
    for position in range(4):
        pair.send((1, position), (2, position), wake=False)
        pair.send((2, position), wake=False, number=1)
        pair.collector.collect()  # Nobody is in need of them.
    assert not inboxes[1].due()
    pair.collector.collect(now=True)
    for key, inbox in inboxes.items():
        of_both, of_one = inbox.take(9)
        assert [len(block.positions) for block in of_both] == [4]
        assert _rows(of_both) == [(key, position) for position in range(4)]
        assert len(of_one) == (key == 2)


async def test_rows_reach_their_run_while_the_worker_goes_on_to_write(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run would wait for the end of all others, and what is held for it would grow."""
    inbox, most = Inbox([ALL.spans], []), 10
    pair.open(1, inbox)
    reader, position = RingReader(capacity=1 << 16), 0
    monkeypatch.setattr(collector, "HELD_BYTES", 1 << 10)

    def endless() -> Iterator[np.ndarray]:
        nonlocal position
        for record in reader.take():
            yield record
            if inbox.complete(most):
                break
            assert position < 100
            position += 1
            endless_writer.send((1, position), wake=False)

    endless_writer = Pair(pair.collector, RingWriter(reader.folder), [])
    endless_writer.send((1, 0), wake=False)
    pair.send((1, 0), wake=False)
    monkeypatch.setattr(pair.collector._reader, "take", endless)
    pair.collector.collect(now=True)
    assert inbox.complete(most)
    pair.collector.check()
    reader.close()
    reader.release()


async def test_whoever_wants_rows_at_once_has_those_of_every_step_at_once(pair: Pair) -> None:
    patient, hasty = Inbox([ALL.spans], []), Inbox([ALL.spans], [], at_once=True)
    pair.open(1, patient)
    pair.open(2, hasty)
    for position in range(3):
        pair.send((1, position), (2, position), wake=False)
        pair.collector.collect()
        assert hasty.complete(position + 1)
    pair.collector.close_inbox(2)
    pair.send((1, 3), wake=False)
    pair.collector.collect()
    assert not patient.complete(4)


async def test_a_run_that_ends_leaves_no_inbox(pair: Pair) -> None:
    pair.open(1, Inbox([ALL.spans], []))
    assert pair.collector.open_inboxes == 1
    pair.collector.close_inbox(1)
    pair.collector.close_inbox(1)
    assert pair.collector.open_inboxes == 0


async def test_what_arrives_between_expecting_and_waiting_ends_the_wait(pair: Pair) -> None:
    inbox = Inbox([ALL.spans], [])
    pair.open(1, inbox)
    inbox.expect()
    pair.send((1, 0))
    await asyncio.sleep(0.05)  # The wake-up has come and gone.
    async with asyncio.timeout(1.0):
        await inbox.arrival()


async def test_a_record_wakes_the_runs_it_is_for_and_no_other(pair: Pair) -> None:
    inboxes = [Inbox([ALL.spans], []) for _ in range(3)]
    for key, inbox in enumerate(inboxes):
        pair.open(key, inbox)
        inbox.expect()
    pair.send((0, 0), (2, 0))
    async with asyncio.timeout(1.0):
        await asyncio.gather(inboxes[0].arrival(), inboxes[2].arrival())
    assert [inbox.awaited for inbox in inboxes] == [False, True, False]


# Steps that failed.


def _salted(salt: str) -> Inbox:
    return Inbox([], edits_of(change(Zero(), "q.0")), salt)


def _failed(inbox: Inbox) -> Reason | None:
    with suppress(ActserveError):
        inbox.take(1)
        return None
    with pytest.raises(ActserveError, match="OutOfMemoryError") as caught:
        inbox.complete(1)
    assert caught.value.retry_after_s
    return caught.value.reason


async def test_a_failure_fails_its_runs_and_those_that_may_have_read_what_they_cached(
    pair: Pair,
) -> None:
    inboxes = {
        1: Inbox([ALL.spans], []),
        2: _salted("a"),
        3: _salted("a"),
        4: _salted("b"),
        5: Inbox([ALL.spans], []),
    }
    for key, inbox in inboxes.items():
        pair.open(key, inbox)
    inboxes[1].expect()
    pair.fail(1, 2)
    async with asyncio.timeout(1.0):
        await inboxes[1].arrival()
    assert {key: reason for key, inbox in inboxes.items() if (reason := _failed(inbox))} == {
        1: Reason.CAPTURE_INCOMPLETE,
        2: Reason.INTERVENTION_INCOMPLETE,
        3: Reason.INTERVENTION_INCOMPLETE,
    }


async def test_of_a_run_that_is_gone_any_edited_one_may_have_read_what_it_cached(
    pair: Pair,
) -> None:
    inboxes = {1: _salted("a"), 2: Inbox([ALL.spans], [])}
    for key, inbox in inboxes.items():
        pair.open(key, inbox)
    inboxes[1].expect()
    pair.fail(99)
    async with asyncio.timeout(1.0):
        await inboxes[1].arrival()
    assert [key for key, inbox in inboxes.items() if _failed(inbox)] == [1]


async def test_a_run_that_was_salted_before_a_failure_is_not_opened_after_it(pair: Pair) -> None:
    before, watcher = pair.collector.failures, _salted("a")
    pair.open(1, watcher)
    watcher.expect()
    pair.fail(1)
    async with asyncio.timeout(1.0):
        await watcher.arrival()
    assert not pair.collector.open(2, _salted("a"), before)
    assert pair.collector.open(2, _salted("a"), pair.collector.failures)


@pytest.mark.parametrize("gone", [False, True])
async def test_what_a_run_cached_that_could_not_be_decided_is_used_by_nobody(
    pair: Pair, gone: bool
) -> None:
    before, inboxes = pair.collector.failures, {key: _salted("a") for key in (1, 2, 3)}
    for key, inbox in inboxes.items():
        if key > 1 or not gone:
            pair.open(key, inbox)
    # The first had no score; the second read what it cached; the third computed all by itself.
    notes = [(1, 0.0, 1.0, np.nan), (2, REUSED, 0.0, 0.0), (3, 0.0, 1.0, 0.0)]
    keys, at, changes = np.array([1, 2, 3]), np.zeros(3, np.int64), np.zeros((3, 4), np.float32)
    for row, (_, *note) in zip(changes, notes, strict=True):
        row[[0, 2, 3]] = note
    write_receipts(pair.writer, ReceiptsRecord(keys, at, at, changes))
    await _until_complete(inboxes[2], 1)
    await _until_complete(inboxes[3], 1)
    with pytest.raises(ActserveError, match="no finite score") as caught:
        inboxes[2].reports([7])
    assert caught.value.reason is Reason.INTERVENTION_INCOMPLETE
    assert caught.value.retry_after_s
    assert inboxes[3].reports([7])[0].rows == 1
    assert pair.collector.failures > before  # What begins from now on has another salt.


async def test_a_collector_that_failed_says_so_and_wakes_everybody(pair: Pair) -> None:
    pair.collector.check()
    inbox = Inbox([ALL.spans], [])
    pair.open(1, inbox)
    inbox.expect()
    pair.writer.write(np.array([77, 0, 0, 0], np.int64))  # A kind of record that is not known.
    async with asyncio.timeout(1.0):
        await inbox.arrival()
    with pytest.raises(RuntimeError, match="no longer be collected"):
        pair.collector.check()


async def test_a_collector_that_failed_takes_no_record_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop asks it for every token of every run."""
    inbox = Inbox([ALL.spans], [])
    pair.open(1, inbox)
    pair.writer.write(np.array([77, 0, 0, 0], np.int64), wake=False)
    failures: list[str] = []
    monkeypatch.setattr(collector.log, "exception", failures.append)
    for _ in range(3):
        pair.collector.collect(now=True)
    assert len(failures) == 1
    with pytest.raises(RuntimeError, match="no longer be collected"):
        pair.collector.check()
