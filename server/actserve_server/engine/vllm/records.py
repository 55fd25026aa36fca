"""The two kinds of record the worker sends: captured rows, and receipts for edits.

    rows:      [ROWS, taps, rows, row bytes]  points[taps]  stages[taps]  keys[rows]
               positions[rows]  data[taps, rows, row bytes]
    receipts:  [RECEIPTS, n, 0, 0]  keys[n]  edits[n]  positions[n]

Everything but the data is int64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.engine.vllm.points import Tap
from actserve_server.engine.vllm.ring import RingWriter

_ROWS, _RECEIPTS = 1, 2
_HEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class RowsRecord:
    """Rows of several runs at several taps. `data` is uint8, [taps, rows, row bytes]."""

    taps: tuple[Tap, ...]
    keys: np.ndarray
    positions: np.ndarray
    data: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ReceiptsRecord:
    """Edits made, or reused from the prefix cache: int64 [n] each."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray


def write_rows(ring: RingWriter, record: RowsRecord) -> None:
    """Writes a record of rows, in pieces small enough for the ring."""
    taps = np.array(record.taps, np.int64)
    count, row_bytes = len(record.keys), record.data.shape[2]
    step = max(1, ring.max_record // (len(taps) * row_bytes + 16))
    for start in range(0, count, step):
        end = min(start + step, count)
        ring.write(
            [
                np.array([_ROWS, len(taps), end - start, row_bytes], np.int64),
                np.ascontiguousarray(taps.T),
                record.keys[start:end],
                record.positions[start:end],
                np.ascontiguousarray(record.data[:, start:end]),
            ]
        )


def write_receipts(ring: RingWriter, record: ReceiptsRecord) -> None:
    """Writes a record of receipts, in pieces small enough for the ring."""
    step = max(1, ring.max_record // 24)
    for start in range(0, len(record.keys), step):
        piece = slice(start, start + step)
        keys = record.keys[piece]
        head = np.array([_RECEIPTS, len(keys), 0, 0], np.int64)
        ring.write([head, keys, record.edits[piece], record.positions[piece]])


def read(record: np.ndarray) -> RowsRecord | ReceiptsRecord:
    """The record in these bytes. Its arrays lie in the bytes; copy what is to be kept."""
    kind, first, rows, row_bytes = record[: 8 * _HEAD].view(np.int64).tolist()
    fields = _Fields(record, 8 * _HEAD)
    if kind == _ROWS:
        points, stages = fields.int64(first), fields.int64(first)
        taps = tuple(Tap(*tap) for tap in zip(points.tolist(), stages.tolist(), strict=True))
        keys, positions = fields.int64(rows), fields.int64(rows)
        data = fields.bytes(first * rows * row_bytes).reshape(first, rows, row_bytes)
        return RowsRecord(taps, keys, positions, data)
    if kind == _RECEIPTS:
        return ReceiptsRecord(fields.int64(first), fields.int64(first), fields.int64(first))
    raise ValueError(f"a record of kind {kind}; this server reads {_ROWS} and {_RECEIPTS}")


def by_key(keys: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The runs of equal keys in a table, as (key, slice)."""
    changes = (np.flatnonzero(np.diff(keys)) + 1).tolist() if len(keys) else []
    for start, end in zip([0, *changes], [*changes, len(keys)], strict=True):
        if start < end:
            yield int(keys[start]), slice(start, end)


class _Fields:
    """Consecutive fields of a record."""

    def __init__(self, record: np.ndarray, offset: int) -> None:
        self._record = record
        self._offset = offset

    def bytes(self, size: int) -> np.ndarray:
        start, self._offset = self._offset, self._offset + size
        return self._record[start : self._offset]

    def int64(self, count: int) -> np.ndarray:
        return self.bytes(8 * count).view(np.int64)
