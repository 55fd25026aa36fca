"""The kinds of record the worker sends: captured rows, receipts for edits, and runs that failed.

    rows:      [ROWS, sites, rows, number]  row_bytes[sites]  keys[rows]  positions[rows]
               data[rows, sum of row_bytes]
    receipts:  [RECEIPTS, n, 0, 0]  keys[n]  edits[n]  positions[n]  changes[n, 4]
    failure:   [FAILURE, n, bytes, 0]  keys[n]  why[bytes]

Everything is int64 but data, which are bytes, changes, which are float32, and why, which is UTF-8.
The sites are those of the runs in the record, in the order in which each of them asked in its
capture `number`. All a run has in a record lies together, so that it is taken out with one copy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np
import torch

from actserve_server.engine.vllm.ring import DEFAULT_CAPACITY, RingWriter

MAX_ROW_BYTES = (DEFAULT_CAPACITY >> 1) - (64 << 10)
"""Of all sites of one position, which are in one record. What else is in it fits in the rest."""

_ROWS, _RECEIPTS, _FAILURE = 1, 2, 3
_HEAD = 4


@dataclass(frozen=True, slots=True, eq=False)
class RowsRecord:
    """Rows of several runs that read the same sites."""

    TABLES: ClassVar = ("keys", "positions", "data")
    """What has an entry for each row."""

    number: int
    """Of the capture of these runs."""
    keys: np.ndarray
    positions: np.ndarray
    row_bytes: tuple[int, ...]
    """Of each site."""
    data: np.ndarray
    """uint8 [rows, sum of `row_bytes`]: in each row one site after the other."""

    @property
    def kind(self) -> tuple[int, ...]:
        """Records of which it is equal may be `joined`."""
        return (self.number, *self.row_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class ReceiptsRecord:
    """What edits did: int64 [n] each, and float32 [n, 4] as `step_plan.Receipts.changes`."""

    TABLES: ClassVar = ("keys", "edits", "positions", "changes")
    kind: ClassVar[tuple[int, ...]] = ()
    """As of `RowsRecord`."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray
    changes: np.ndarray


R = TypeVar("R", RowsRecord, ReceiptsRecord)


@dataclass(frozen=True, slots=True, eq=False)
class FailureRecord:
    """Runs that a step could not serve, and why."""

    keys: np.ndarray
    why: str


def write_rows(
    ring: RingWriter,
    number: int,
    keys: np.ndarray,
    positions: np.ndarray,
    columns: Sequence[torch.Tensor],
    *,
    wake: bool = True,
) -> None:
    """Writes a record of rows, in pieces small enough for the ring. A column is [rows, width] on
    the host, of any element type, and has the rows of one site. `wake` as in
    `RingWriter.record`."""
    row_bytes = np.array([each.shape[1] * each.element_size() for each in columns], np.int64)
    width, dtype = int(row_bytes.sum()), columns[0].dtype
    if any(each.dtype != dtype for each in columns):
        dtype, columns = torch.uint8, [each.view(torch.uint8) for each in columns]
    step = max(1, ring.max_record // (width + 16))
    for start in range(0, len(keys), step):
        piece = slice(start, start + step)
        count = len(keys[piece])
        head = np.array([_ROWS, len(columns), count, number], np.int64)
        small = (head, row_bytes, keys[piece], positions[piece])
        with ring.record(*(field.nbytes for field in small), count * width, wake=wake) as places:
            for place, field in zip(places, small, strict=False):
                place[:] = field.view(np.uint8)
            data = torch.from_numpy(places[-1]).view(dtype).view(count, -1)
            # Straight into the ring. A view of all rows would take its time, at every site.
            rows = columns if count == len(keys) else [each[piece] for each in columns]
            torch.cat([*rows], dim=1, out=data)


def write_receipts(ring: RingWriter, record: ReceiptsRecord, *, wake: bool = True) -> None:
    """Writes a record of receipts, in pieces small enough for the ring. `wake` as in
    `RingWriter.record`."""
    step = max(1, ring.max_record // 48)
    for start in range(0, len(record.keys), step):
        piece = slice(start, start + step)
        keys = record.keys[piece]
        head = np.array([_RECEIPTS, len(keys), 0, 0], np.int64)
        fields = (keys, record.edits[piece], record.positions[piece], record.changes[piece])
        ring.write(head, *fields, wake=wake)


def write_failure(ring: RingWriter, record: FailureRecord) -> None:
    why = np.frombuffer(record.why.encode(), np.uint8)
    head = np.array([_FAILURE, len(record.keys), len(why), 0], np.int64)
    ring.write(head, record.keys, why, urgent=True)


def read(record: np.ndarray) -> RowsRecord | ReceiptsRecord | FailureRecord:
    """The record in these bytes. Its arrays lie in the bytes; copy what is to be kept."""
    kind, first, rows, number = record[: 8 * _HEAD].view(np.int64).tolist()
    fields = _Fields(record, 8 * _HEAD)
    if kind == _ROWS:
        row_bytes = tuple(fields.int64(first).tolist())
        keys, positions = fields.int64(rows), fields.int64(rows)
        data = fields.bytes(rows * sum(row_bytes)).reshape(rows, sum(row_bytes))
        return RowsRecord(number, keys, positions, row_bytes, data)
    if kind == _RECEIPTS:
        keys, edits, positions = fields.int64(first), fields.int64(first), fields.int64(first)
        changes = fields.bytes(16 * first).view(np.float32).reshape(first, 4)
        return ReceiptsRecord(keys, edits, positions, changes)
    if kind == _FAILURE:
        return FailureRecord(fields.int64(first), fields.bytes(rows).tobytes().decode())
    raise ValueError(
        f"a record of kind {kind}; this server reads {_ROWS}, {_RECEIPTS} and {_FAILURE}"
    )


def joined(records: Sequence[R]) -> R:
    """Records of one kind as a single one: in the order of their keys, and of each key as they
    were. Worth it for small ones, whose cost is not that of their bytes."""
    first, *others = records
    if not others:
        return first
    order = np.argsort(np.concatenate([each.keys for each in records]), kind="stable")
    tables = {
        name: np.concatenate([getattr(each, name) for each in records])[order]
        for name in first.TABLES
    }
    return replace(first, **tables)


def by_key(keys: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The runs of equal keys in a table, as (key, slice)."""
    if not len(keys):
        return
    starts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist()]
    for key, start, end in zip(
        keys[starts].tolist(), starts, [*starts[1:], len(keys)], strict=True
    ):
        yield key, slice(start, end)


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
