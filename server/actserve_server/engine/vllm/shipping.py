"""Sends a step's rows and receipts from the worker to the server."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from actserve_server.domain.blocks import blocks
from actserve_server.engine.vllm.records import (
    FailureRecord,
    ReceiptsRecord,
    write_failure,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingWriter
from actserve_server.engine.vllm.step_plan import Receipts

PROMPT_BYTES = 256 << 10
"""From so much on rows of a prompt wake the server: its first token, with which they would be
found, may be far."""


@dataclass(frozen=True, slots=True, eq=False)
class ShippedRows:
    """Rows of some runs, [rows, width] for each site that their capture `number` reads."""

    number: int
    keys: np.ndarray
    positions: np.ndarray
    columns: tuple[torch.Tensor, ...]

    @property
    def of_prompt(self) -> bool:
        """Whether they are many, and more than one of a run."""
        if sum(each.nbytes for each in self.columns) < PROMPT_BYTES:
            return False
        return bool((self.keys[1:] == self.keys[:-1]).any())


class Shipper:
    """Writes to the ring: at once on CPU; on a GPU from a thread, once the copy has arrived, so
    that the step does not wait for it."""

    def __init__(self, ring: RingWriter, device: torch.device) -> None:
        self._ring = ring
        self._thread: _CopyThread | None = None if device.type == "cpu" else _CopyThread()
        self._wakes = self._thread is not None
        """What is sent in the step itself is in the ring before the step's tokens reach the server,
        which looks for it then."""

    def ship(
        self,
        blocks: Sequence[ShippedRows],
        receipts: Receipts | None,
        proven: torch.Tensor | None = None,
    ) -> None:
        """Where `proven`, bool [], turns out false, the runs fail instead."""
        if self._thread is None:
            self._write(blocks, receipts, proven)
            return
        blocks = [_on_host(block) for block in blocks]
        if receipts:
            receipts = replace(receipts, changes=_to_host(receipts.changes))
        on_host = None if proven is None else _to_host(proven)
        self._thread.once_copied(lambda: self._write(blocks, receipts, on_host))

    def fail(self, keys: Sequence[int], why: str) -> None:
        """Says that these runs could not be served, after whatever was sent of them before."""
        record = FailureRecord(np.array(keys, np.int64), why)
        if self._thread is None:
            write_failure(self._ring, record)
        else:
            self._thread.once_copied(lambda: write_failure(self._ring, record))

    def _write(
        self,
        blocks: Sequence[ShippedRows],
        receipts: Receipts | None,
        proven: torch.Tensor | None,
    ) -> None:
        if proven is not None and not proven:
            keys = np.concatenate([each.keys for each in (*blocks, receipts) if each])
            why = "a CUDA graph was replayed without its taps"
            write_failure(self._ring, FailureRecord(np.unique(keys), why))
            return
        for block in blocks:
            write_rows(
                self._ring,
                block.number,
                block.keys,
                block.positions,
                block.columns,
                wake=self._wakes or block.of_prompt,
            )
        if receipts:
            write_receipts(
                self._ring,
                ReceiptsRecord(
                    receipts.keys, receipts.edits, receipts.positions, receipts.changes.numpy()
                ),
                wake=self._wakes,
            )


class _CopyThread:
    """Calls functions one after the other, each once all that the step's own stream was told to
    copy before has arrived."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._queue: queue.SimpleQueue[tuple[torch.cuda.Event, Callable[[], None]]]
        self._queue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="actserve-rows", daemon=True).start()

    def once_copied(self, write: Callable[[], None]) -> None:
        if self._error:
            raise RuntimeError("rows could not be sent") from self._error
        copied = torch.cuda.Event()
        copied.record()
        self._queue.put((copied, write))

    def _run(self) -> None:
        try:
            while True:
                copied, write = self._queue.get()
                copied.synchronize()
                write()
        except BaseException as error:
            self._error = error


def _on_host(block: ShippedRows) -> ShippedRows:
    data = [rows.view(torch.uint8) for rows in block.columns]
    widths = [each.shape[1] for each in data]
    host = torch.empty(len(data[0]), sum(widths), dtype=torch.uint8, pin_memory=True)
    copy_together(data, host)
    return replace(block, columns=host.split(widths, dim=1))


def copy_together(columns: Sequence[torch.Tensor], host: torch.Tensor) -> None:
    """Copies columns side by side, uint8 [rows, ...] each: some rows at a time, so that they are
    never all on the device twice."""
    for rows in blocks(len(host), host.shape[1] // 4):
        together = torch.cat([column[rows] for column in columns], dim=1)
        host[rows].copy_(together, non_blocking=True)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host
