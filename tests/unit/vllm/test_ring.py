"""The ring hands over every record, whole and in order, and leaves nothing behind."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from actserve_server.engine.vllm import ring as ring_module
from actserve_server.engine.vllm.ring import RingFull, RingReader, RingWriter


def test_records_arrive_whole_and_in_order_through_many_wraps() -> None:
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, 256, rng.integers(1, 900), np.uint8) for _ in range(500)]

    def write() -> None:
        for index, data in enumerate(sent):
            writer.write(np.array([index, len(data)], np.int64), data)

    thread = threading.Thread(target=write)
    thread.start()
    records = reader.records()
    for index, data in enumerate(sent):
        record = next(records)
        assert record[:16].view(np.int64).tolist() == [index, len(data)]
        assert np.array_equal(record[16 : 16 + len(data)], data)
    thread.join()
    reader.close()


def test_a_quiet_record_wakes_nobody_until_too_much_waits() -> None:
    reader = RingReader(capacity=4 * ring_module.QUIET_BYTES)
    writer = RingWriter(reader.folder)
    woken: list[int] = []

    def wait() -> None:
        while reader.wait():
            woken.append(sum(1 for _ in reader.take()))

    thread = threading.Thread(target=wait)
    thread.start()
    piece = np.zeros(ring_module.QUIET_BYTES // 2 - 8, np.uint8)
    writer.write(piece, wake=False)
    writer.write(piece, wake=False)
    thread.join(timeout=0.1)
    assert not woken
    assert reader.waiting == ring_module.QUIET_BYTES
    writer.write(piece, wake=False)
    _until(lambda: sum(woken) == 3)
    writer.write(piece, wake=False)
    writer.write(piece)
    _until(lambda: sum(woken) == 5)
    reader.close()
    thread.join(timeout=2.0)


def test_the_end_of_the_ring_that_a_record_leaves_empty_counts_as_waiting() -> None:
    """Or more would wait than the server takes by itself, of which the reader was never told."""
    quiet = ring_module.QUIET_BYTES
    reader = RingReader(capacity=4 * quiet)
    writer = RingWriter(reader.folder)
    woken = threading.Event()

    def wait() -> None:
        while reader.wait():
            woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    for size in (quiet, quiet, quiet, quiet // 2):
        writer.write(np.zeros(size - 8, np.uint8))
    assert sum(1 for _ in reader.take()) == 4
    _until(woken.is_set)
    woken.clear()
    # It does not fit into the last half, so that it begins at the start of the ring.
    writer.write(np.zeros(3 * quiet // 4 - 8, np.uint8), wake=False)
    assert reader.waiting > quiet
    _until(woken.is_set)
    reader.close()
    thread.join(timeout=2.0)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_quiet_records_that_fill_the_ring_wake_its_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring_module, "WRITE_TIMEOUT_S", 2.0)
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    thread = threading.Thread(target=lambda: [*reader.records()])
    thread.start()
    for _ in range(20):  # Or `RingFull` is raised.
        writer.write(np.zeros(1000, np.uint8), wake=False)
    reader.close()
    thread.join(timeout=2.0)


def test_nothing_is_left_once_both_ends_have_it() -> None:
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    reader.detach_folder()
    assert not Path(reader.folder).exists()
    writer.write(np.arange(4))
    assert next(reader.records()).view(np.int64).tolist() == [0, 1, 2, 3]
    reader.close()


def test_a_released_reader_holds_no_file_and_no_memory() -> None:
    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("/actserve-")
        return len(os.listdir("/proc/self/fd")), mapped

    before = held()
    for _ in range(3):
        reader = RingReader(capacity=4096)
        assert held() > before
        reader.close()
        reader.release()
    assert held() == before


def test_a_writer_whose_reader_is_stuck_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "WRITE_TIMEOUT_S", 0.05)
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    for _ in range(3):
        writer.write(np.zeros(1000, np.uint8))
    with pytest.raises(RingFull, match="the server is stuck"):
        writer.write(np.zeros(1000, np.uint8))
    reader.close()


@pytest.mark.parametrize("size", [300, 500, 900, 1000])
def test_what_says_that_there_was_no_room_finds_some(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the ring the others stopped, at its end too."""
    monkeypatch.setattr(ring_module, "WRITE_TIMEOUT_S", 0.01)
    reader = RingReader(capacity=4096)
    writer = RingWriter(reader.folder)
    for taken in range(8):
        with suppress(RingFull):
            for _ in itertools.count():
                writer.write(np.zeros(size, np.uint8))
        writer.write(np.full(100, taken, np.uint8), urgent=True)
        *_, last = [record.copy() for record in reader.take()]
        assert last[:100].tolist() == [taken] * 100
    reader.close()


def test_a_record_larger_than_half_the_ring_is_refused() -> None:
    reader = RingReader(capacity=4096)
    with pytest.raises(ValueError, match="the ring holds 4096"):
        RingWriter(reader.folder).write(np.zeros(2048, np.uint8))
    reader.close()


def test_close_ends_a_waiting_reader() -> None:
    reader = RingReader(capacity=4096)
    thread = threading.Thread(target=lambda: list(reader.records()))
    thread.start()
    reader.close()
    thread.join(timeout=2.0)
    assert not thread.is_alive()
