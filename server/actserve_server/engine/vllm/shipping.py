"""Sends a step's rows and receipts from the worker to the server."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.engine.vllm.records import (
    ReceiptsRecord,
    RowsRecord,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.step_plan import Receipts


@dataclass(frozen=True, slots=True, eq=False)
class ShippedRows:
    """Rows of some runs, [rows, width] for each site that their capture `number` reads."""

    number: int
    keys: np.ndarray
    positions: np.ndarray
    data: tuple[torch.Tensor, ...]


class Shipper:
    """Writes to the ring: at once on CPU; on a GPU from a thread, once the copy has arrived, so
    that the step does not wait for it."""

    def __init__(self, ring: RingWriter, device: torch.device) -> None:
        self._ring = ring
        self._copies: _CopyThread | None = (
            None if device.type == "cpu" else _CopyThread(self._write)
        )

    def ship(self, blocks: Sequence[ShippedRows], receipts: Receipts | None) -> None:
        if self._copies:
            self._copies.submit(blocks, receipts)
        else:
            self._write(blocks, receipts)

    def _write(self, blocks: Sequence[ShippedRows], receipts: Receipts | None) -> None:
        for block in blocks:
            data = tuple(_bytes(rows) for rows in block.data)
            write_rows(self._ring, RowsRecord(block.number, block.keys, block.positions, data))
        if receipts:
            changes = receipts.changes.numpy()
            write_receipts(
                self._ring,
                ReceiptsRecord(receipts.keys, receipts.edits, receipts.positions, changes),
            )


def _bytes(rows: torch.Tensor) -> np.ndarray:
    return rows.contiguous().view(torch.uint8).numpy()


class _CopyThread:
    """Copies to pinned memory on the step's own stream, and writes in order."""

    def __init__(self, write: Callable[[Sequence[ShippedRows], Receipts | None], None]) -> None:
        self._write = write
        self._error: BaseException | None = None
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="actserve-rows", daemon=True).start()

    def submit(self, blocks: Sequence[ShippedRows], receipts: Receipts | None) -> None:
        if self._error:
            raise RuntimeError("rows could not be sent") from self._error
        copies = [
            ShippedRows(block.number, block.keys, block.positions, tuple(map(_to_host, block.data)))
            for block in blocks
        ]
        if receipts:
            receipts = Receipts(
                receipts.keys, receipts.edits, receipts.positions, _to_host(receipts.changes)
            )
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


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host
