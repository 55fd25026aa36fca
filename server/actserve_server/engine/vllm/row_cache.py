"""Captured rows of prompts, for the next run that captures the same.

vLLM's prefix cache holds keys and values, and a position that comes from it is never computed, so
it has no row. Here are the rows: by block of the prompt (`block_names.py`) and site, or what was
made of them, in the server's process. A run whose rows are all here up to some position lets vLLM
read its cache up to there (`scheduler.py`), and has only what comes after computed.

What is held is bounded, and what was used longest ago goes first. Within one prompt the last block
goes first, since without the blocks before it none is of use.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from actserve_server.engine.vllm.inbox import Block
from actserve_server.engine.vllm.wire import Reading

ENTRY_BYTES = 512
"""What Python needs for rows of one block, beside the rows."""

_Key = tuple[bytes, Hashable]
"""A block, and one of `Reading.columns`."""


class Watch(Protocol):
    """Told of what caches hold and give."""

    def held(self, more: int) -> None:
        """So many bytes more are held, or less if it is negative."""
        ...

    def found(self, rows: int) -> None:
        """So many rows were given to a run."""
        ...


class _Nobody:
    def held(self, more: int) -> None: ...

    def found(self, rows: int) -> None: ...


NOBODY: Watch = _Nobody()


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of one column at some tokens of a block."""

    offsets: np.ndarray
    """Which tokens: int64, ascending, from 0 for the block's first."""
    data: np.ndarray
    """uint8 [offsets, row bytes]."""

    @property
    def nbytes(self) -> int:
        return self.offsets.nbytes + self.data.nbytes + ENTRY_BYTES

    def missing(self, offsets: np.ndarray) -> np.ndarray:
        """Those of these ascending ones that are not here."""
        first, last = self.offsets[0], self.offsets[-1]
        if last - first < len(self.offsets) and first <= offsets[0] and offsets[-1] <= last:
            return offsets[:0]  # Nearly always: a whole block.
        return offsets[np.isin(offsets, self.offsets, invert=True)]

    def at(self, offsets: np.ndarray) -> np.ndarray:
        """The rows of tokens that are here, uint8 [offsets, row bytes]."""
        if len(offsets) == len(self.offsets):
            return self.data
        return self.data[np.searchsorted(self.offsets, offsets)]

    def joined(self, other: "_Rows") -> "_Rows":
        """With what the other has besides."""
        is_new = np.isin(other.offsets, self.offsets, invert=True)
        offsets = np.concatenate([self.offsets, other.offsets[is_new]])
        order = np.argsort(offsets)
        data = np.concatenate([self.data, other.data[is_new]])
        return _Rows(offsets[order], data[order])


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a run need not compute."""

    end: int
    """The first position of the prompt that it has to: one whose row it wants and nobody has, or
    the last, from which the next token is sampled."""
    rows: tuple[tuple[int, Block], ...]
    """Of each capture that wants some before `end`, by its number: all of them."""


class RowCache:
    """May be used from several threads."""

    def __init__(self, max_bytes: int, block_tokens: int, watch: Watch = NOBODY) -> None:
        """Holds nothing if `max_bytes` is 0. `block_tokens` are in a block."""
        self.max_bytes = max_bytes
        self.block_tokens = block_tokens
        self._watch = watch
        self._rows: OrderedDict[_Key, _Rows] = OrderedDict()
        """What was used last comes last."""
        self._held = 0
        """Of these, and of what is on the way."""
        self._lock = threading.RLock()

    @property
    def held_bytes(self) -> int:
        return self._held

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            while self._drop_oldest():
                pass

    def close(self) -> None:
        """Forgets everything, and holds nothing from now on."""
        self.max_bytes = 0
        self.clear()

    def find(self, names: Sequence[bytes], readings: Sequence[Reading], tokens: int) -> Found:
        """What is here for captures of a prompt of so many tokens, whose blocks have these names.

        The rows are copies, or stay as they are whatever is dropped here."""
        wants = [
            (number, reading, wanted)
            for number, reading in enumerate(readings)
            if len(wanted := reading.spans.within(0, tokens))
        ]
        end = tokens - 1
        parts: list[list[_Part]] = []
        with self._lock:
            for _, reading, wanted in wants:
                found, missing = self._parts(names, reading, wanted[wanted < end])
                parts.append(found)
                end = min(end, missing)
            if any(_takes_keys(reading, end) for reading in readings):
                end = 0  # Keys of cached positions are not here.
            used = {key: None for found in parts for part in found for key in part.keys}
            for key in reversed(used):
                self._rows.move_to_end(key)
        rows = tuple(
            (number, block)
            for (number, *_), found in zip(wants, parts, strict=True)
            if (block := _joined(found, end)) is not None
        )
        self._watch.found(sum(len(block.positions) * len(block.row_bytes) for _, block in rows))
        return Found(end, rows)

    def filling(self, names: Sequence[bytes], readings: Sequence[Reading]) -> "Filling":
        """For the rows that a run computes."""
        return Filling(self, names, readings)

    def _parts(
        self, names: Sequence[bytes], reading: Reading, wanted: np.ndarray
    ) -> "tuple[list[_Part], int]":
        """What is here, block by block, and the first wanted position that is not."""
        parts: list[_Part] = []
        columns = reading.columns
        for number, positions in _by_block(wanted, self.block_tokens):
            if number >= len(names) or columns is None:
                return parts, int(positions[0])
            start = number * self.block_tokens
            keys = [(names[number], column) for column in columns]
            rows = [each for key in keys if (each := self._rows.get(key)) is not None]
            if len(rows) < len(keys):
                return parts, int(positions[0])
            missing = [each.missing(positions - start) for each in rows]
            first = min((start + int(each[0]) for each in missing if len(each)), default=None)
            here = positions if first is None else positions[positions < first]
            if len(here):
                parts.append(_Part(here, start, keys, rows))
            if first is not None:
                return parts, first
        return parts, int(np.iinfo(np.int64).max)

    # For `Filling`, which calls these with the lock.

    @property
    def lock(self) -> threading.RLock:
        return self._lock

    def has(self, key: _Key, offsets: np.ndarray) -> bool:
        rows = self._rows.get(key)
        return rows is not None and not len(rows.missing(offsets))

    def reserve(self, size: int) -> bool:
        """Makes room. False if there is none, which is held by what is on the way."""
        while self._held + size > self.max_bytes:
            if not self._drop_oldest():
                return False
        self._hold(size)
        return True

    def release(self, size: int) -> None:
        self._hold(-size)

    def put(self, key: _Key, rows: _Rows) -> None:
        """What room was reserved for. Of rows that are here already, these are kept."""
        before = self._rows.pop(key, None)
        self._rows[key] = rows if before is None else before.joined(rows)
        if before is not None:
            self._hold(self._rows[key].nbytes - before.nbytes - rows.nbytes)

    def _drop_oldest(self) -> bool:
        if not self._rows:
            return False
        _, rows = self._rows.popitem(last=False)
        self._hold(-rows.nbytes)
        return True

    def _hold(self, more: int) -> None:
        self._held += more
        self._watch.held(more)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Wanted rows of one block."""

    positions: np.ndarray
    start: int
    """The position of the block's first token."""
    keys: Sequence[_Key]
    rows: Sequence[_Rows]
    """Of each column."""


class Filling:
    """Rows of one run on their way into a cache, where nobody sees them before `commit`: a run may
    turn out to have been changed otherwise than its blocks' names say."""

    def __init__(
        self, cache: RowCache, names: Sequence[bytes], readings: Sequence[Reading]
    ) -> None:
        self._cache = cache
        self._names = names
        self._readings = readings
        self._pieces: list[tuple[_Key, _Rows]] = []
        self._reserved = 0
        self.open = True
        """Until it is committed or dropped."""

    def add(self, taken: Sequence[Sequence[Block]]) -> None:
        """Copies what belongs to whole blocks of the prompt; `taken` are blocks of rows of each
        capture. What there is no room for is left out."""
        for reading, blocks in zip(self._readings, taken, strict=True):
            if (columns := reading.columns) is not None:
                for block in blocks:
                    self._add(columns, block)

    def commit(self) -> None:
        """From now on others find these rows."""
        with self._cache.lock:
            self.open = False
            for key, rows in reversed(self._pieces):
                self._cache.put(key, rows)
            self._pieces, self._reserved = [], 0
            self._cache.reserve(0)  # The cache may be closed.

    def drop(self) -> None:
        """Nobody ever finds those that were not committed."""
        with self._cache.lock:
            self.open = False
            self._cache.release(self._reserved)
            self._pieces, self._reserved = [], 0

    def _add(self, columns: Sequence[Hashable], block: Block) -> None:
        size = self._cache.block_tokens
        for number, positions in _by_block(block.positions, size):
            if number >= len(self._names):
                return
            offsets = positions - number * size
            first = int(np.searchsorted(block.positions, positions[0]))
            rows = block.part(slice(first, first + len(positions)))
            for column, data in zip(columns, rows.sites(), strict=True):
                if not self._put((self._names[number], column), offsets, data):
                    return

    def _put(self, key: _Key, offsets: np.ndarray, data: np.ndarray) -> bool:
        """False if there is no room."""
        with self._cache.lock:
            if self._cache.has(key, offsets):
                return True
            size = offsets.nbytes + data.nbytes + ENTRY_BYTES
            if not self.open or not self._cache.reserve(size):
                return False
            self._reserved += size
        rows = _Rows(offsets, data.copy())
        with self._cache.lock:
            if self.open:  # Or its room was given back meanwhile.
                self._pieces.append((key, rows))
        return True


def _takes_keys(reading: Reading, end: int) -> bool:
    """Whether rows from a position on take the keys of all before it."""
    return reading.of_patterns and any(last > end for _, last in reading.spans.ranges[-1:])


def _by_block(positions: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Ascending positions by the number of the block that they are in."""
    if not len(positions):
        return
    numbers = positions // size
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(positions)]
    for start, end in pairwise(starts):
        yield int(numbers[start]), positions[start:end]


def _joined(parts: Sequence[_Part], end: int) -> Block | None:
    """The rows below a position, if any."""
    kept = [(part, part.positions[part.positions < end]) for part in parts]
    kept = [(part, positions) for part, positions in kept if len(positions)]
    if not kept:
        return None
    row_bytes = tuple(rows.data.shape[1] for rows in kept[0][0].rows)
    positions = np.concatenate([each for _, each in kept])
    data = np.empty((len(positions), sum(row_bytes)), np.uint8)
    high = 0
    for part, wanted in kept:
        low, high = high, high + len(wanted)
        block = Block(wanted, row_bytes, data[low:high])
        for place, rows in zip(block.sites(), part.rows, strict=True):
            place[:] = rows.at(wanted - part.start)
    return Block(positions, row_bytes, data)
