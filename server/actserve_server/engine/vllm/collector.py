"""Empties the ring into the inboxes of running requests."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import structlog

from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.records import (
    FailureRecord,
    ReceiptsRecord,
    RowsRecord,
    by_key,
    joined,
    read,
)
from actserve_server.engine.vllm.ring import QUIET_BYTES, RingReader

log = structlog.get_logger("actserve.collector")

COLLECT_S = 0.05
"""How long rows may lie in the ring where nobody is in need of them, so that those of several steps
are handed to their runs together."""

JOINED_BYTES = 64 << 10
"""Of the largest record that is joined with others of its kind."""

HELD_BYTES = 1 << 20
"""So much is copied out of the ring to be joined. The worker may go on to write, and nobody is to
wait for the end of that."""


class Collector:
    """Copies each run's rows out of the ring, once, and wakes the runs that wait: on the event loop
    when a step's tokens have come, and in a thread of its own when the worker wakes it.

    It never waits for a reader: what a run may hold in its inbox was reserved when it was
    admitted. Rows of a run that is gone (cancelled, or one step ahead of its end) are dropped.
    """

    def __init__(
        self,
        reader: RingReader,
        loop: asyncio.AbstractEventLoop,
        filled: Callable[[float], None] = lambda part: None,
    ) -> None:
        """`filled` is told which part of the ring was full, whenever it is emptied."""
        self._filled = filled
        self._reader = reader
        self._loop = loop
        self._inboxes: dict[int, Inbox] = {}
        self._at_once: set[int] = set()
        """Of those, the keys of who wants rows at once."""
        self._collected = 0.0
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        """Held by who takes from the ring."""
        self._failures = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="actserve-collector", daemon=True)
        self._thread.start()

    @property
    def failures(self) -> int:
        """How often steps failed whose runs had edits, or a condition could not be decided. What
        they computed may lie in the prefix cache under the salts of such runs, so a salt must
        differ from those of before."""
        return self._failures

    def open(self, key: int, inbox: Inbox, failures: int) -> bool:
        """False, and nothing is opened, if there are more failures meanwhile."""
        with self._lock:
            if self._failures != failures:
                return False
            self._inboxes[key] = inbox
            if inbox.at_once:
                self._at_once.add(key)
            return True

    def close_inbox(self, key: int) -> None:
        with self._lock:
            self._inboxes.pop(key, None)
            self._at_once.discard(key)

    @property
    def open_inboxes(self) -> int:
        return len(self._inboxes)

    def check(self) -> None:
        """Raises RuntimeError once rows can no longer be collected."""
        if self._error:
            raise RuntimeError("activation rows can no longer be collected") from self._error

    def collect(self, *, now: bool = False) -> None:
        """On the event loop, whenever a token has come: takes what is in the ring if it has lain
        there for some time, if a run wants its rows at once, or `now`. It leaves to the thread what
        is so much that the thread was woken for it."""
        if not now and not self._at_once and time.monotonic() - self._collected < COLLECT_S:
            return
        if self._closed or self._error or not 0 < self._reader.waiting <= QUIET_BYTES:
            return
        with self._taking:  # The thread can be at no more than that.
            self._take(_wake_all)

    def close(self) -> None:
        self._closed = True
        self._reader.close()
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._reader.release()

    def _run(self) -> None:
        while True:
            with self._taking:
                self._take(self._wake_from_thread)
            if self._error or not self._reader.wait():
                return

    def _take(self, wake: Callable[[Sequence[Inbox]], None]) -> None:
        try:
            if waiting := self._reader.waiting:
                self._filled(waiting / self._reader.capacity)
            small: dict[tuple[int, ...], list[Any]] = {}
            held = 0
            for data in self._reader.take():
                # The ring has room for others again as soon as the next one is asked for.
                is_small = len(data) <= JOINED_BYTES
                record = read(data.copy() if is_small else data)
                if is_small and not isinstance(record, FailureRecord) and held < HELD_BYTES:
                    small.setdefault(record.kind, []).append(record)
                    held += len(data)
                    continue
                # In order: what comes after belongs to later steps.
                self._put_joined(small, wake)
                self._put(record, wake)
                held = 0
            self._put_joined(small, wake)
            self._collected = time.monotonic()
        except BaseException as error:
            self._error = error
            with self._lock:
                wake([*self._inboxes.values()])
            log.exception("the collector of activation rows has failed")

    def _put_joined(
        self,
        records: dict[tuple[int, ...], list[Any]],
        wake: Callable[[Sequence[Inbox]], None],
    ) -> None:
        """Puts these records, by kind, and empties the table."""
        for alike in records.values():
            self._put(joined(alike), wake)
        records.clear()

    def _put(
        self,
        record: RowsRecord | ReceiptsRecord | FailureRecord,
        wake: Callable[[Sequence[Inbox]], None],
    ) -> None:
        match record:
            case RowsRecord():
                found = self._put_rows(record)
            case ReceiptsRecord():
                found = self._put_receipts(record)
            case FailureRecord():
                found = self._fail(record)
        if awaited := [inbox for inbox in found if inbox.awaited]:
            wake(awaited)

    def _wake_from_thread(self, inboxes: Sequence[Inbox]) -> None:
        with suppress(RuntimeError):  # The loop is closed: the server is gone.
            self._loop.call_soon_threadsafe(_wake_all, inboxes)

    def _put_rows(self, record: RowsRecord) -> list[Inbox]:
        positions, found = record.positions.copy(), []
        for key, rows in by_key(record.keys):
            if inbox := self._inboxes.get(key):
                # The copy out of the ring. It is the run's own, so that no run keeps another's
                # rows in memory.
                block = Block(positions[rows], record.row_bytes, record.data[rows].copy())
                inbox.put_rows(record.number, block)
                found.append(inbox)
        return found

    def _put_receipts(self, record: ReceiptsRecord) -> list[Inbox]:
        undecided = np.isnan(record.changes[:, 3])
        if undecided.any():
            self._distrust(np.unique(record.keys[undecided]).tolist())
        tables, found = (record.edits.copy(), record.positions.copy(), record.changes.copy()), []
        for key, rows in by_key(record.keys):
            if inbox := self._inboxes.get(key):
                inbox.put_receipts(*(table[rows] for table in tables))
                found.append(inbox)
        return found

    def _fail(self, record: FailureRecord) -> list[Inbox]:
        """Fails these runs, and those that may have read what they left in the prefix cache."""
        keys = record.keys.tolist()
        log.error("a step failed", runs=len(keys), why=record.why)
        failed, others = self._failed(keys)
        for inbox in (*failed, *others):
            inbox.fail(record.why)
        return [*failed, *others]

    def _distrust(self, keys: Sequence[int]) -> None:
        """Nobody may use what these runs left in the prefix cache: a condition had no score. They
        find that out by themselves."""
        for inbox in self._failed(keys)[1]:
            inbox.distrust_reused()

    def _failed(self, keys: Sequence[int]) -> tuple[list[Inbox], list[Inbox]]:
        """Counts a failure of these runs. Returns their inboxes, and those of others that may have
        read what they left in the prefix cache."""
        with self._lock:
            inboxes = [*self._inboxes.values()]
            failed = [self._inboxes[key] for key in keys if key in self._inboxes]
            self._failures += 1
        salts = {inbox.salt for inbox in failed if inbox.salt}
        # Of a run that is gone the salt is not known.
        any_salt = len(failed) < len(keys)
        return failed, [
            each
            for each in inboxes
            if each.salt and (any_salt or each.salt in salts) and each not in failed
        ]


def _wake_all(inboxes: Sequence[Inbox]) -> None:
    for inbox in inboxes:
        inbox.wake()
