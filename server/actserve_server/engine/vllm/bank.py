"""Vectors of running requests, in one buffer of a fixed size, so that a step gathers them with one
index. Those of 16 bits, which are read as a whole and never gathered, lie in it two to a number.

Equal vectors are one block, which goes when nobody holds it any more: neither a run nor an upload.
Those that are lasting, such as the encoder of a dictionary, then stay as long as nothing else needs
the room; the ones unused for longest go first. New blocks come after the last. When they would
reach beyond the end, the others are moved down to close the gaps, so whatever fits by the sum of
its bytes fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from actserve_server.domain.tensors import ElementType, held_bytes
from actserve_server.engine.forms import Vectors

TORCH_TYPES = {
    ElementType.F32: torch.float32,
    ElementType.F16: torch.float16,
    ElementType.BF16: torch.bfloat16,
}

_MOVED = 1 << 20
"""Numbers that are moved at once, through a copy."""

GATHERED_AHEAD_BYTES = 64 << 20
"""Of the vectors of a step, so many are gathered before the pass, and again in the steps that go on
like it. What is beyond is gathered where the pass comes to it, a block of rows at a time."""

ALL_ROWS = slice(None)
"""The block that has all rows of a step."""


class BankFullError(Exception):
    """There is no room for these vectors now."""


class MissingVectorsError(Exception):
    """A run names vectors that were not uploaded."""


@dataclass(slots=True, eq=False)
class HeldVectors:
    """Where the vectors of one digest are."""

    digest: bytes
    width: int
    offsets: np.ndarray
    """Where in the buffer each vector begins, int64 [count]; of those of 16 bits, where all of them
    begin. Changed in place when it moves."""
    element_type: ElementType = ElementType.F32
    filled: int = 0
    """Vectors that have arrived."""
    runs: int = 0
    """Edits of runs that hold it."""
    uploads: set[int] = field(default_factory=set)
    """Those that the server has not dropped."""
    lasting: bool = False

    @property
    def start(self) -> int:
        return int(self.offsets[0])

    @property
    def size(self) -> int:
        """In numbers of the buffer."""
        return held_bytes(len(self.offsets) * self.width, self.element_type) // 4


OPENED_BYTES = 16 << 20
"""So much of a bank is used before gaps between its blocks are closed."""


class VectorBank:
    """Holds vectors of any width, at most `capacity_bytes` of them in total."""

    def __init__(self, device: torch.device, capacity_bytes: int) -> None:
        self.device = device
        # Not set to zero, so that on CPU what was never used takes no memory.
        self._numbers = torch.empty(capacity_bytes // 4, dtype=torch.float32, device=device)
        self._opened = min(len(self._numbers), OPENED_BYTES // 4)
        """Blocks lie below this, so that gaps are closed before more of the memory is used."""
        self._blocks: dict[bytes, HeldVectors] = {}
        """In the order in which they lie."""
        self._end = 0
        self._used = 0
        self._idle: dict[bytes, HeldVectors] = {}
        """Lasting blocks that nobody holds, the one unused for longest first."""
        self._reserved = 0
        """So often was room reserved."""
        self.moves = 0
        """How often blocks have moved, and with them what was planned by where they lay."""

    @property
    def numbers(self) -> torch.Tensor:
        """All that it holds, float32 [n], where it always lies."""
        return self._numbers

    @property
    def used_bytes(self) -> int:
        """Of what somebody holds."""
        return 4 * (self._used - sum(block.size for block in self._idle.values()))

    def hold(self, vectors: Vectors) -> HeldVectors:
        """The block of an edit's vectors, until it is released. Raises `BankFullError`, and
        `MissingVectorsError` for vectors without their rows that were not uploaded to the end."""
        block = self._blocks.get(vectors.digest)
        if block is None or block.filled < vectors.count:
            if vectors.rows is None:
                raise MissingVectorsError(
                    f"{vectors.nbytes} bytes of the run's vectors were not uploaded before it began"
                )
            block = block or self._add(
                vectors.digest, vectors.count, vectors.width, vectors.element_type
            )
            # A copy, because what came over the wire is read-only.
            self._write(block, 0, torch.from_numpy(np.array(vectors.rows, np.float32)))
        self._idle.pop(block.digest, None)
        block.runs += 1
        return block

    def hold_all(self, every: Sequence[Vectors]) -> list[HeldVectors]:
        """The blocks of all edits of a run. Raises as `hold`, and then holds none."""
        blocks: list[HeldVectors] = []
        try:
            blocks.extend(map(self.hold, every))
        except BaseException:
            for block in blocks:
                self.release(block)
            raise
        return blocks

    def reserve(self, numbers: int) -> HeldVectors:
        """Room for so many numbers of one run, as a single vector, until it is released. They are
        not zero at first. Raises `BankFullError`."""
        self._reserved += 1
        block = self._add(b"reserved %d" % self._reserved, 1, numbers)
        block.filled = block.runs = 1
        return block

    def release(self, block: HeldVectors) -> None:
        """One edit, or who reserved it, holds the block no longer."""
        block.runs -= 1
        self._free_unheld(block)

    def keep(self, upload: int, digest: bytes) -> bool:
        """Whether all vectors of that digest are here. They then stay until this upload is dropped,
        and need not be sent."""
        block = self._blocks.get(digest)
        if block is None or block.filled < len(block.offsets):
            return False
        self._idle.pop(digest, None)
        block.uploads.add(upload)
        return True

    def upload(
        self,
        upload: int,
        digest: bytes,
        count: int,
        width: int,
        start: int,
        data: bytes,
        lasting: bool = False,
        element_type: str = ElementType.F32,
    ) -> None:
        """Takes vectors [start, start + n) of a block of `count`, little-endian, in ascending
        order. The block stays until this upload is dropped, and as long as runs hold it. Raises
        `BankFullError`."""
        kind = ElementType(element_type)
        block = self._blocks.get(digest) or self._add(digest, count, width, kind)
        self._idle.pop(digest, None)
        block.uploads.add(upload)
        block.lasting = block.lasting or lasting
        rows = torch.frombuffer(bytearray(data), dtype=TORCH_TYPES[kind]).view(-1, width)
        if start > block.filled:
            raise ValueError(f"vectors from {start} on came, but only {block.filled} before them")
        self._write(block, start, rows)

    def drop(self, upload: int, digest: bytes) -> None:
        """Ends an upload, complete or not. Does nothing if it never began."""
        if block := self._blocks.get(digest):
            block.uploads.discard(upload)
            self._free_unheld(block)

    def gather(self, offsets: np.ndarray, width: int) -> torch.Tensor:
        """The vectors of this width that begin at offsets of any shape, [*offsets.shape, width]."""
        # A row for every number of the buffer, the next one number further on: no copy.
        rows = self._numbers.as_strided((len(self._numbers) - width + 1, width), (1, 1))
        return rows[torch.from_numpy(offsets).to(self.device, non_blocking=True)]

    def rows(self, block: HeldVectors) -> torch.Tensor:
        """All vectors of a block, [count, width], in its element type, as they lie until the next
        one comes."""
        numbers = self._numbers[block.start : block.start + block.size]
        if block.element_type is ElementType.F32:
            return numbers.view(-1, block.width)
        count = len(block.offsets)
        every = numbers.view(TORCH_TYPES[block.element_type])
        return every[: count * block.width].view(count, block.width)

    def _add(
        self,
        digest: bytes,
        count: int,
        width: int,
        element_type: ElementType = ElementType.F32,
    ) -> HeldVectors:
        apart = width if element_type is ElementType.F32 else 0
        block = HeldVectors(digest, width, apart * np.arange(count), element_type)
        size, capacity = block.size, len(self._numbers)
        while self._used + size > capacity and self._idle:
            self._free(next(iter(self._idle.values())))
        if self._used + size > capacity:
            raise BankFullError(
                f"vectors take {4 * size} bytes, but {4 * (capacity - self._used)} of "
                f"{4 * capacity} are free"
            )
        if self._end + size > self._opened:
            self._close_gaps()
            # So that half of it is free, and gaps are not closed again soon.
            while 2 * (self._end + size) > self._opened < capacity:
                self._opened = min(2 * self._opened, capacity)
        block.offsets += self._end
        self._blocks[digest] = block
        self._end += size
        self._used += size
        return block

    def _write(self, block: HeldVectors, start: int, rows: torch.Tensor) -> None:
        self.rows(block)[start : start + len(rows)] = rows.to(self.device)
        block.filled = max(block.filled, start + len(rows))

    def _free_unheld(self, block: HeldVectors) -> None:
        if block.runs or block.uploads:
            return
        if block.lasting and block.filled == len(block.offsets):
            self._idle[block.digest] = block
        else:
            self._free(block)

    def _free(self, block: HeldVectors) -> None:
        self._idle.pop(block.digest, None)
        del self._blocks[block.digest]
        self._used -= block.size
        if not self._blocks:
            self._end = 0

    def _close_gaps(self) -> None:
        self.moves += 1
        end = 0
        for block in self._blocks.values():
            if block.start > end:
                self._move(block.start, end, block.size)
                block.offsets -= block.start - end
            end += block.size
        self._end = end

    def _move(self, source: int, target: int, size: int) -> None:
        """Moves numbers down. In pieces, since where they go may reach into where they are."""
        for start in range(0, size, _MOVED):
            count = min(_MOVED, size - start)
            piece = self._numbers[source + start : source + start + count].clone()
            self._numbers[target + start : target + start + count] = piece


class StepVectors:
    """The vectors of the rows of a step: of each row its own, or the same for all. As long as the
    bank has not moved them."""

    def __init__(self, of: Callable[[slice], torch.Tensor], count: int) -> None:
        """`count` is of rows, or one."""
        self._of = of
        self._are_alike = count == 1

    def of(self, rows: slice) -> torch.Tensor:
        """Float32 [rows or 1, ...]."""
        return self._of(ALL_ROWS if self._are_alike else rows)


def part_of(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    """A block of rows; no view where that is all, which takes its time."""
    return tensor if rows is ALL_ROWS else tensor[rows]


class StepGather:
    """Gathers the vectors of one step."""

    def __init__(self, bank: VectorBank) -> None:
        self.bank = bank
        self._left = GATHERED_AHEAD_BYTES

    def vectors(self, offsets: np.ndarray, width: int) -> StepVectors:
        """Those of this width that begin at `offsets`, [rows or 1, ...], with the width added."""
        count, size = len(offsets), 4 * width * offsets.size
        if size <= self._left:
            self._left -= size
            gathered = self.bank.gather(offsets, width)
            return StepVectors(partial(part_of, gathered), count)
        return StepVectors(lambda rows: self.bank.gather(offsets[rows], width), count)

    def block(self, held: HeldVectors) -> StepVectors:
        """All of a block for every row, [1, count, width]: no copy."""
        return StepVectors(partial(part_of, self.bank.rows(held)[None]), 1)
