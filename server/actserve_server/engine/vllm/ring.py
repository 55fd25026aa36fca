"""A ring of bytes in shared memory, from one worker process to one server process.

The server creates it in a private folder, the worker opens it, and the folder is deleted as soon
as both have it mapped: whatever happens to either process, nothing stays behind. A FIFO beside the
ring wakes the reader, who otherwise sleeps in the kernel. A record need not wake it: the kernel
would run the reader where the writer runs, in the middle of a step. The server looks into the ring
by itself whenever a step's tokens come, which is after its rows.

A record is contiguous and starts with its own length; then come fields, each padded to 8 bytes. A
record that would cross the end of the ring is preceded by a filler.
"""

import errno
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

DEFAULT_CAPACITY = 64 << 20
"""Bytes. A prefill of 2,048 tokens at 576 wide fills 2.4 MB a site in bf16."""

WRITE_TIMEOUT_S = 60.0
"""How long a full ring may stay full before the worker gives up; only a stuck server does that."""

QUIET_BYTES = 4 << 20
"""So much may lie in the ring that the reader was not woken for."""

_KEPT_FREE = 64 << 10
"""Bytes of a ring that are kept for what says that others found no room, at most a sixteenth: could
that not be said, the engine would have to die."""

_HEADER = 64
"""Bytes at the start of the mapping: head and tail, each on its own cache line's half."""
_FILLER = -1
_MAX_SLEEP_S = 0.002


class RingFull(RuntimeError):
    """The reader has not freed enough of the ring within `WRITE_TIMEOUT_S`."""


class _Mapping:
    """What both ends share: the mapped file, its counters and its data."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        whole = np.frombuffer(self._map, np.uint8)
        # Bytes ever written and ever freed; their difference is what lies in the ring.
        self.counters = whole[:16].view(np.int64)
        self.data = whole[_HEADER:]
        self.capacity = len(self.data)
        self._fence_lock = threading.Lock()

    def fence(self) -> None:
        # Taking a lock orders memory on every CPU: data before the counter that publishes it.
        with self._fence_lock:
            pass


class RingWriter:
    """The worker's end."""

    def __init__(self, folder: Path) -> None:
        self._ring = _Mapping(folder / "ring")
        self._doorbell = os.open(folder / "doorbell", os.O_RDWR | os.O_NONBLOCK)
        self._quiet = 0
        """Bytes since the reader was woken, with what was left empty at the end of the ring."""

    @property
    def max_record(self) -> int:
        """Bytes of the largest record worth writing: several must fit, or both ends take turns."""
        return self._ring.capacity // 4

    @contextmanager
    def record(
        self, *sizes: int, wake: bool = True, urgent: bool = False
    ) -> Iterator[list[np.ndarray]]:
        """Appends one record: yields its fields, uint8 of these sizes in the ring itself, to be
        filled inside the block. Waits while the ring is full, of which an `urgent` one may take the
        part that others leave free. The reader is woken if `wake`, or if more than `QUIET_BYTES`
        would wait for it."""
        length = 8 + sum(map(_padded, sizes))
        start = self._reserve(length, urgent)
        self._ring.data[start : start + 8].view(np.int64)[0] = length
        offset, fields = start + 8, []
        for size in sizes:
            fields.append(self._ring.data[offset : offset + size])
            offset += _padded(size)
        yield fields
        self._publish(length)
        if wake or self._quiet > QUIET_BYTES:
            self._wake()

    def write(self, *fields: np.ndarray, wake: bool = True, urgent: bool = False) -> None:
        """Appends a record whose fields are these C-contiguous arrays, in other things as
        `record`."""
        sizes = (field.nbytes for field in fields)
        with self.record(*sizes, wake=wake, urgent=urgent) as places:
            for place, field in zip(places, fields, strict=True):
                place[:] = field.reshape(-1).view(np.uint8)

    def _reserve(self, length: int, urgent: bool) -> int:
        ring = self._ring
        if length > ring.capacity // 2:
            raise ValueError(f"a record of {length} bytes; the ring holds {ring.capacity}")
        start = int(ring.counters[0]) % ring.capacity
        to_end = ring.capacity - start
        crosses = length > to_end
        wanted = to_end + length if crosses else length
        kept = 0 if urgent else min(_KEPT_FREE, ring.capacity // 16)
        # Of both parts together, or a filler would take what is kept.
        self._wait_for(min(wanted + kept, ring.capacity))
        if crosses:
            ring.data[start : start + 8].view(np.int64)[0] = _FILLER
            self._publish(to_end)
            start = 0
        return start

    def _wait_for(self, length: int) -> None:
        ring, sleep_s = self._ring, 0.00005
        if ring.capacity - int(ring.counters[0] - ring.counters[1]) < length:
            self._wake()
        deadline = time.monotonic() + WRITE_TIMEOUT_S
        while ring.capacity - int(ring.counters[0] - ring.counters[1]) < length:
            if time.monotonic() > deadline:
                raise RingFull(
                    f"no room for {length} bytes in {WRITE_TIMEOUT_S:.0f} s: the server is stuck"
                )
            time.sleep(sleep_s)
            sleep_s = min(2 * sleep_s, _MAX_SLEEP_S)

    def _publish(self, length: int) -> None:
        self._ring.fence()
        self._ring.counters[0] += length
        self._ring.fence()
        self._quiet += length

    def _wake(self) -> None:
        self._quiet = 0
        try:
            os.write(self._doorbell, b"\0")
        except OSError as error:
            # A full doorbell has been rung already.
            if error.errno != errno.EAGAIN:
                raise


class RingReader:
    """The server's end, which creates the ring in a folder of its own."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        shared = Path("/dev/shm")
        self.folder = Path(
            tempfile.mkdtemp(prefix="actserve-", dir=shared if shared.is_dir() else None)
        )
        path = self.folder / "ring"
        with path.open("xb") as file:
            # Reserved now, so that too small a /dev/shm fails here and not with a SIGBUS later.
            os.posix_fallocate(file.fileno(), 0, _HEADER + capacity)
        os.mkfifo(self.folder / "doorbell", 0o600)
        self._ring = _Mapping(path)
        # Opened for both directions, so that a worker's death is not an end of file.
        self._doorbell = os.open(self.folder / "doorbell", os.O_RDWR)
        self._closed = False

    def detach_folder(self) -> None:
        """Deletes the folder; call once the writer has opened it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def waiting(self) -> int:
        """Bytes that lie in the ring. Any thread may ask."""
        return int(self._ring.counters[0] - self._ring.counters[1])

    @property
    def capacity(self) -> int:
        """Bytes that it holds."""
        return self._ring.capacity

    def take(self) -> Iterator[np.ndarray]:
        """Yields the bytes without its length of each record in the ring, until there is none. For
        one thread at a time.

        A yielded array lies in the ring: it is valid until the next one is asked for.
        """
        ring = self._ring
        while ring.counters[1] < ring.counters[0]:
            ring.fence()
            start = int(ring.counters[1]) % ring.capacity
            length = int(ring.data[start : start + 8].view(np.int64)[0])
            if length == _FILLER:
                length = ring.capacity - start
            else:
                yield ring.data[start + 8 : start + length]
            ring.fence()
            ring.counters[1] += length

    def wait(self) -> bool:
        """Blocks until the writer wakes it; false once it was closed."""
        if not self._closed:
            with suppress(BlockingIOError):  # `close` makes the doorbell non-blocking.
                os.read(self._doorbell, 4096)
        return not self._closed

    def records(self) -> Iterator[np.ndarray]:
        """Yields all records as `take` does, waiting for more until `close`."""
        yield from self.take()
        while self.wait():
            yield from self.take()

    def close(self) -> None:
        """Ends `wait`, from any thread."""
        self._closed = True
        # A reader that has stopped already may have left the doorbell full.
        os.set_blocking(self._doorbell, False)
        with suppress(BlockingIOError):
            os.write(self._doorbell, b"\0")
        self.detach_folder()

    def release(self) -> None:
        """Frees the ring, once nobody takes from it."""
        os.close(self._doorbell)
        del self._ring


def _padded(size: int) -> int:
    return (size + 7) & ~7
