"""Sends a step's rows and receipts from the worker to the server."""

import queue
import threading
from collections.abc import Callable, Sequence

import torch

from actserve_server.engine.vllm.records import (
    ReceiptsRecord,
    RowsRecord,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.routing import Receipts, RowBlock


class Shipper:
    """Writes to the ring: at once on CPU; on a GPU from a thread, once the copy has arrived, so
    that the step does not wait for it."""

    def __init__(self, ring: RingWriter, device: torch.device) -> None:
        self._ring = ring
        self._copies: _CopyThread | None = (
            None if device.type == "cpu" else _CopyThread(self._write)
        )

    def ship(self, blocks: Sequence[RowBlock], receipts: Receipts | None) -> None:
        if self._copies:
            self._copies.submit(blocks, receipts)
        else:
            self._write(blocks, receipts)

    def _write(self, blocks: Sequence[RowBlock], receipts: Receipts | None) -> None:
        for block in blocks:
            data = block.data.view(torch.uint8).numpy()
            write_rows(self._ring, RowsRecord(block.taps, block.keys, block.positions, data))
        if receipts:
            write_receipts(
                self._ring, ReceiptsRecord(receipts.keys, receipts.edits, receipts.positions)
            )


class _CopyThread:
    """Copies blocks to pinned memory on the step's own stream, and writes them in order."""

    def __init__(self, write: Callable[[Sequence[RowBlock], Receipts | None], None]) -> None:
        self._write = write
        self._error: BaseException | None = None
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="actserve-rows", daemon=True).start()

    def submit(self, blocks: Sequence[RowBlock], receipts: Receipts | None) -> None:
        if self._error:
            raise RuntimeError("rows could not be sent") from self._error
        copies = []
        for block in blocks:
            host = torch.empty(block.data.shape, dtype=block.data.dtype, pin_memory=True)
            host.copy_(block.data, non_blocking=True)
            copies.append(RowBlock(block.taps, block.keys, block.positions, host))
        copied = torch.cuda.Event()
        copied.record()
        self._queue.put((copied, copies, receipts))

    def _run(self) -> None:
        try:
            while True:
                copied, copies, receipts = self._queue.get()
                copied.synchronize()
                self._write(copies, receipts)
        except BaseException as error:
            self._error = error
