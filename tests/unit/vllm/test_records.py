"""What the worker writes is what the server reads, however large a step is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from actserve_server.engine.vllm.records import (
    MAX_ROW_BYTES,
    FailureRecord,
    ReceiptsRecord,
    RowsRecord,
    by_key,
    joined,
    read,
    write_failure,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import DEFAULT_CAPACITY, RingReader, RingWriter


@contextmanager
def _ring(capacity: int) -> Iterator[tuple[RingReader, RingWriter]]:
    reader = RingReader(capacity)
    try:
        yield reader, RingWriter(reader.folder)
    finally:
        reader.close()


@dataclass(frozen=True)
class Sent:
    keys: np.ndarray
    positions: np.ndarray
    columns: list[np.ndarray]

    @staticmethod
    def random(count: int, row_bytes: tuple[int, ...]) -> "Sent":
        rng = np.random.default_rng(count)
        columns = [rng.integers(0, 256, (count, size), np.uint8) for size in row_bytes]
        return Sent(np.sort(rng.integers(1, 5, count)), np.arange(count), columns)

    def write(self, ring: RingWriter, number: int = 0) -> None:
        columns = [torch.from_numpy(each) for each in self.columns]
        write_rows(ring, number, self.keys, self.positions, columns)


def _received(reader: RingReader, count: int) -> list[RowsRecord]:
    records, got = reader.records(), []
    while sum(len(record.keys) for record in got) < count:
        record = read(next(records).copy())
        assert isinstance(record, RowsRecord)
        got.append(record)
    return got


@pytest.mark.parametrize(
    "row_bytes", [(10,), (6, 10, 3), (8, 4096), (1, 2, 3, 4, 5)], ids=lambda sizes: str(sizes)
)
@pytest.mark.parametrize("count", [1, 3, 200])
def test_rows_of_any_widths_survive_the_ring_in_pieces(
    row_bytes: tuple[int, ...], count: int
) -> None:
    sent = Sent.random(count, row_bytes)
    with _ring(1 << 20) as (reader, writer):
        sent.write(writer, number=2)
        got = _received(reader, count)
    assert {(record.number, record.row_bytes) for record in got} == {(2, row_bytes)}
    assert np.array_equal(np.concatenate([record.keys for record in got]), sent.keys)
    assert np.array_equal(np.concatenate([record.positions for record in got]), sent.positions)
    data = np.concatenate([record.data for record in got])
    assert np.array_equal(data, np.concatenate(sent.columns, axis=1))


def test_more_rows_than_the_ring_likes_at_once_come_in_several_records() -> None:
    with _ring(20480) as (reader, writer):
        Sent.random(200, (30, 10)).write(writer)
        assert len(_received(reader, 200)) > 1


def test_columns_that_lie_apart_in_memory_are_written_as_they_are() -> None:
    whole = np.arange(60, dtype=np.uint8).reshape(6, 10)
    with _ring(8192) as (reader, writer):
        Sent(np.full(3, 1), np.arange(3), [whole[::2, 1:4]]).write(writer)
        (got,) = _received(reader, 3)
    assert np.array_equal(got.data, whole[::2, 1:4])


@pytest.mark.parametrize("why", ["", "OutOfMemoryError", "é" * 7])
def test_a_failure_names_its_runs_and_why(why: str) -> None:
    with _ring(4096) as (reader, writer):
        write_failure(writer, FailureRecord(np.array([7, 9]), why))
        got = read(next(reader.records()).copy())
    assert isinstance(got, FailureRecord)
    assert (got.keys.tolist(), got.why) == ([7, 9], why)


def test_receipts_survive_the_ring_in_pieces() -> None:
    changes = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    sent = ReceiptsRecord(np.repeat([7, 8], 30), np.arange(60) % 3, np.arange(60), changes)
    with _ring(4096) as (reader, writer):
        write_receipts(writer, sent)
        records, got = reader.records(), []
        while sum(len(record.keys) for record in got) < 60:
            record = read(next(records).copy())
            assert isinstance(record, ReceiptsRecord)
            got.append(record)
    assert len(got) > 1
    for name in ("keys", "edits", "positions", "changes"):
        whole = np.concatenate([getattr(record, name) for record in got])
        assert np.array_equal(whole, getattr(sent, name))


def test_a_record_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a record of kind 77"):
        read(np.array([77, 0, 0, 0], np.int64).view(np.uint8))


def test_by_key_splits_at_every_change_and_repeats_a_key_that_returns() -> None:
    keys = np.array([0, 0, 5, 5, 5, 0, 7])
    assert [(key, rows.start, rows.stop) for key, rows in by_key(keys)] == [
        (0, 0, 2),
        (5, 2, 5),
        (0, 5, 6),
        (7, 6, 7),
    ]
    assert list(by_key(np.empty(0, np.int64))) == []


def test_the_widest_rows_are_sent() -> None:
    # As many sites as the largest models have.
    widths = (MAX_ROW_BYTES - 8 * 2000, *[8] * 2000)
    with _ring(DEFAULT_CAPACITY) as (reader, writer):
        columns = [torch.ones((1, width), dtype=torch.uint8) for width in widths]
        write_rows(writer, 0, np.array([1]), np.array([5]), columns)
        record = read(next(reader.records()))
        assert isinstance(record, RowsRecord)
        assert record.data.shape == (1, MAX_ROW_BYTES)
        assert record.data.all()
        del record  # It lies in the ring.


def test_columns_of_several_element_types_lie_side_by_side_as_they_are() -> None:
    columns = [torch.arange(6.0).view(2, 3), torch.ones(2, 2, dtype=torch.bfloat16)]
    with _ring(DEFAULT_CAPACITY) as (reader, writer):
        write_rows(writer, 0, np.array([1, 1]), np.array([5, 6]), columns)
        record = read(next(reader.records()))
        assert isinstance(record, RowsRecord)
        assert record.row_bytes == (12, 4)
        assert record.data[:, :12].tobytes() == columns[0].numpy().tobytes()
        assert record.data[:, 12:].tobytes() == columns[1].view(torch.uint8).numpy().tobytes()


def test_joined_records_have_the_rows_of_each_key_in_the_order_in_which_they_came() -> None:
    sent = [Sent.random(count, (6, 10)) for count in (4, 1, 3)]
    with _ring(DEFAULT_CAPACITY) as (reader, writer):
        for each in sent:
            each.write(writer, number=3)
        records = [read(data.copy()) for data in reader.take()]
    whole = joined([each for each in records if isinstance(each, RowsRecord)])
    assert (whole.number, whole.row_bytes) == (3, (6, 10))
    rows = [
        (key, position, *map(bytes, parts))
        for each in sent
        for key, position, *parts in zip(each.keys, each.positions, *each.columns, strict=True)
    ]
    expected = sorted(rows, key=lambda row: row[0])
    assert whole.keys.tolist() == [row[0] for row in expected]
    assert whole.positions.tolist() == [row[1] for row in expected]
    assert [bytes(row) for row in whole.data] == [row[2] + row[3] for row in expected]
