"""The two kinds of record the worker sends: captured rows, and receipts for edits.

    rows:      [ROWS, sites, rows, number]  row_bytes[sites]  keys[rows]  positions[rows]
               then for each site, data[rows, row_bytes]
    receipts:  [RECEIPTS, n, 0, 0]  keys[n]  edits[n]  positions[n]  changes[n, 2]

Everything is int64 but data, which are bytes, and changes, which are float64. The sites are those
of the runs in the record, in the order in which each of them asked in its capture `number`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.engine.vllm.ring import RingWriter

_ROWS, _RECEIPTS = 1, 2
_HEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class RowsRecord:
    """Rows of several runs that read the same sites. `data` has one uint8 [rows, row bytes] for
    each site of capture `number` of these runs."""

    number: int
    keys: np.ndarray
    positions: np.ndarray
    data: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReceiptsRecord:
    """What edits did: int64 [n] each, and float64 [n, 2] as `step_plan.Receipts.changes`."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray
    changes: np.ndarray


def write_rows(ring: RingWriter, record: RowsRecord) -> None:
    """Writes a record of rows, in pieces small enough for the ring."""
    row_bytes = np.array([data.shape[1] for data in record.data], np.int64)
    count = len(record.keys)
    step = max(1, ring.max_record // (int(row_bytes.sum()) + 16))
    for start in range(0, count, step):
        piece = slice(start, min(start + step, count))
        head = np.array([_ROWS, len(record.data), len(record.keys[piece]), record.number], np.int64)
        data = [np.ascontiguousarray(each[piece]) for each in record.data]
        ring.write([head, row_bytes, record.keys[piece], record.positions[piece], *data])


def write_receipts(ring: RingWriter, record: ReceiptsRecord) -> None:
    """Writes a record of receipts, in pieces small enough for the ring."""
    step = max(1, ring.max_record // 40)
    for start in range(0, len(record.keys), step):
        piece = slice(start, start + step)
        keys = record.keys[piece]
        head = np.array([_RECEIPTS, len(keys), 0, 0], np.int64)
        changes = record.changes[piece].astype(np.float64)
        ring.write([head, keys, record.edits[piece], record.positions[piece], changes])


def read(record: np.ndarray) -> RowsRecord | ReceiptsRecord:
    """The record in these bytes. Its arrays lie in the bytes; copy what is to be kept."""
    kind, first, rows, number = record[: 8 * _HEAD].view(np.int64).tolist()
    fields = _Fields(record, 8 * _HEAD)
    if kind == _ROWS:
        row_bytes = fields.int64(first).tolist()
        keys, positions = fields.int64(rows), fields.int64(rows)
        data = tuple(fields.bytes(rows * size).reshape(rows, size) for size in row_bytes)
        return RowsRecord(number, keys, positions, data)
    if kind == _RECEIPTS:
        keys, edits, positions = fields.int64(first), fields.int64(first), fields.int64(first)
        changes = fields.bytes(16 * first).view(np.float64).reshape(first, 2)
        return ReceiptsRecord(keys, edits, positions, changes)
    raise ValueError(f"a record of kind {kind}; this server reads {_ROWS} and {_RECEIPTS}")


def by_key(keys: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The runs of equal keys in a table, as (key, slice)."""
    changes = (np.flatnonzero(np.diff(keys)) + 1).tolist() if len(keys) else []
    for start, end in zip([0, *changes], [*changes, len(keys)], strict=True):
        if start < end:
            yield int(keys[start]), slice(start, end)


class _Fields:
    """Consecutive fields of a record, each padded to 8 bytes."""

    def __init__(self, record: np.ndarray, offset: int) -> None:
        self._record = record
        self._offset = offset

    def bytes(self, size: int) -> np.ndarray:
        start, self._offset = self._offset, self._offset + (size + 7 & ~7)
        return self._record[start : start + size]

    def int64(self, count: int) -> np.ndarray:
        return self.bytes(8 * count).view(np.int64)
