"""Empties the ring into the inboxes of running requests."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog

from actserve_server.engine.vllm.inbox import Block, Inbox
from actserve_server.engine.vllm.records import ReceiptsRecord, RowsRecord, by_key, read
from actserve_server.engine.vllm.ring import RingReader

log = structlog.get_logger("actserve.collector")


class Collector:
    """A thread that copies each run's rows out of the ring, once, and wakes the event loop.

    It never waits for a reader: what a run may hold in its inbox was reserved when it was
    admitted. Rows of a run that is gone (cancelled, or one step ahead of its end) are dropped.
    """

    def __init__(self, reader: RingReader, loop: asyncio.AbstractEventLoop) -> None:
        self._reader = reader
        self._loop = loop
        self._inboxes: dict[int, Inbox] = {}
        self._arrival = asyncio.Event()
        self._wake_pending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="actserve-collector", daemon=True)
        self._thread.start()

    def open(self, key: int, inbox: Inbox) -> None:
        self._inboxes[key] = inbox

    def close_inbox(self, key: int) -> None:
        self._inboxes.pop(key, None)

    @property
    def open_inboxes(self) -> int:
        return len(self._inboxes)

    def arrival(self) -> Coroutine[Any, Any, bool]:
        """A wait for whatever arrives after this call, for any run.

        Not itself a coroutine function: which event is meant must be settled now, and not when the
        wait is first scheduled, or what arrives in between would wake nobody.
        """
        return self._arrival.wait()

    def check(self) -> None:
        """Raises RuntimeError once rows can no longer be collected."""
        if self._error:
            raise RuntimeError("activation rows can no longer be collected") from self._error

    def close(self) -> None:
        self._reader.close()
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._reader.release()

    def _run(self) -> None:
        try:
            for data in self._reader.records():
                record = read(data)
                if isinstance(record, RowsRecord):
                    self._put_rows(record)
                else:
                    self._put_receipts(record)
                self._wake_loop()
        except BaseException as error:
            self._error = error
            self._wake_loop()
            log.exception("the collector of activation rows has failed")

    def _wake_loop(self) -> None:
        if not self._wake_pending:
            self._wake_pending = True
            with suppress(RuntimeError):  # The loop is closed: the server is gone.
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wake_pending = False
        # Wakes everyone who waits now; the next to wait finds a fresh event.
        self._arrival.set()
        self._arrival = asyncio.Event()

    def _put_rows(self, record: RowsRecord) -> None:
        for key, rows in by_key(record.keys):
            if inbox := self._inboxes.get(key):
                # The copy out of the ring. It is the run's own, so that no run keeps another's
                # rows in memory.
                data = tuple(each[rows].copy() for each in record.data)
                inbox.put_rows(record.number, Block(record.positions[rows].copy(), data))

    def _put_receipts(self, record: ReceiptsRecord) -> None:
        # Receipts of one run and one edit are consecutive; `by_key` splits on the run alone.
        for key, rows in by_key(record.keys):
            if inbox := self._inboxes.get(key):
                positions, changes = record.positions[rows], record.changes[rows]
                for edit, part in by_key(record.edits[rows]):
                    inbox.put_receipt(edit, positions[part].copy(), changes[part].copy())
