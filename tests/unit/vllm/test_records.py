"""What the worker writes is what the server reads, however large a step is."""

import numpy as np

from actserve_server.engine.vllm.points import Tap
from actserve_server.engine.vllm.records import (
    ReceiptsRecord,
    RowsRecord,
    by_key,
    read,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingReader, RingWriter

TAPS = (Tap(0, 1), Tap(31, 0), Tap(60, 2))


def _rows(count: int) -> RowsRecord:
    rng = np.random.default_rng(count)
    return RowsRecord(
        TAPS,
        np.sort(rng.integers(1, 5, count)),
        np.arange(count),
        rng.integers(0, 256, (3, count, 10), np.uint8),
    )


def test_rows_survive_the_ring_in_pieces() -> None:
    reader = RingReader(capacity=16384)
    writer = RingWriter(reader.folder)
    sent = _rows(200)
    write_rows(writer, sent)
    records, got = reader.records(), []
    while sum(len(record.keys) for record in got) < 200:
        record = read(next(records).copy())
        assert isinstance(record, RowsRecord)
        assert record.taps == TAPS
        got.append(record)
    assert len(got) > 1
    assert np.array_equal(np.concatenate([r.keys for r in got]), sent.keys)
    assert np.array_equal(np.concatenate([r.positions for r in got]), sent.positions)
    assert np.array_equal(np.concatenate([r.data for r in got], axis=1), sent.data)
    reader.close()


def test_receipts_survive_the_ring_in_pieces() -> None:
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    sent = ReceiptsRecord(np.repeat([7, 8], 30), np.arange(60) % 3, np.arange(60))
    write_receipts(writer, sent)
    records, got = reader.records(), []
    while sum(len(record.keys) for record in got) < 60:
        record = read(next(records).copy())
        assert isinstance(record, ReceiptsRecord)
        got.append(record)
    for name in ("keys", "edits", "positions"):
        whole = np.concatenate([getattr(record, name) for record in got])
        assert np.array_equal(whole, getattr(sent, name))
    reader.close()


def test_by_key_splits_at_every_change_and_repeats_a_key_that_returns() -> None:
    keys = np.array([0, 0, 5, 5, 5, 0, 7])
    assert [(key, rows.start, rows.stop) for key, rows in by_key(keys)] == [
        (0, 0, 2),
        (5, 2, 5),
        (0, 5, 6),
        (7, 6, 7),
    ]
    assert list(by_key(np.empty(0, np.int64))) == []
