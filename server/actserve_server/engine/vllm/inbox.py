"""What has arrived from the worker for one run, checked to be neither more nor less than asked.

Positions of a run are computed in ascending order, except that a preempted run starts over; so a
position below the last one seen is a repetition and is dropped, and a position that skips a wanted
one means rows were lost.

The first rows of a position are the right ones to keep: from them the tokens were sampled that the
run went on with, and they may be with the caller already. Those that come again are of the same
tokens, computed in another batch, and differ by rounding. That holds because the worker sends
nothing of a token that is taken back (`speculation.py`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from actserve_server.domain.conditions import score_not_finite
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import InterventionReport
from actserve_server.engine.vllm.records import by_key
from actserve_server.engine.vllm.step_plan import LOST, REUSED, UNMATCHED
from actserve_server.engine.vllm.taps import MET, NOT_MET
from actserve_server.engine.vllm.wire import Edit

DUE_BYTES = 512 << 10
DUE_SECONDS = 0.2
"""Rows of generated tokens are worth handing on once they are this many, or this old, whichever is
first: those of many sites are as many events."""

DUE_RECEIPTS = 64
"""Receipts that wait to be checked together: those of so many steps, where a run has one edit."""

RETRY_AFTER_S = 1.0
"""When to try again after a step that failed: what another run took up may be free by then."""


class Cursor:
    """Walks the wanted positions in order. `next` is the lowest position not yet seen."""

    def __init__(self, wanted: Spans) -> None:
        self._wanted = wanted
        self.next = 0
        self._until = 0
        """Every position from `next` to here is wanted."""

    def goes_on(self, positions: np.ndarray) -> bool:
        """Whether these are the next wanted positions one after the other, as those of decode steps
        are, of which there are many: then they are taken. Otherwise `advance` tells more."""
        end = self.next + len(positions)
        if end > self._until or positions.tolist() != [*range(self.next, end)]:
            return False
        self.next = end
        return True

    def advance(self, positions: np.ndarray) -> np.ndarray | None:
        """Takes positions of one step after the other; returns which are new, bool, or None if a
        wanted one is missing."""
        reached = np.maximum.accumulate(np.concatenate([[self.next - 1], positions]))
        is_new = positions > reached[:-1]
        end = int(reached[-1]) + 1
        if not np.array_equal(positions[is_new], self._wanted.within(self.next, end)):
            return None
        if end > self.next:
            self.next, self._until = end, self._wanted.next_bound(end - 1)
        return is_new

    def complete(self, end: int) -> bool:
        """Whether every wanted position below `end` was seen."""
        return self.next >= end or not len(self._wanted.within(self.next, end))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one run, uint8 [rows, sum of `row_bytes`]: in each row one site after the other."""

    positions: np.ndarray
    row_bytes: tuple[int, ...]
    data: np.ndarray

    def part(self, rows: slice | np.ndarray) -> "Block":
        return Block(self.positions[rows], self.row_bytes, self.data[rows])

    @staticmethod
    def together(blocks: "Sequence[Block]") -> "Block":
        """The rows of several, one after the other."""
        first, *others = blocks
        if not others:
            return first
        return Block(
            np.concatenate([each.positions for each in blocks]),
            first.row_bytes,
            np.concatenate([each.data for each in blocks]),
        )

    def sites(self) -> Iterator[np.ndarray]:
        """The rows of each site, uint8 [rows, row bytes], as they lie among those of the others."""
        for low, high in pairwise([0, *accumulate(self.row_bytes)]):
            yield self.data[:, low:high]


@dataclass(slots=True, eq=False)
class _CaptureLog:
    """Rows of one capture that were checked and not yet taken."""

    cursor: Cursor
    blocks: deque[Block] = field(default_factory=deque)

    def take(self, end: int) -> list[Block]:
        taken: list[Block] = []
        while self.blocks:
            block = self.blocks[0]
            count = int(np.searchsorted(block.positions, end))
            if count == len(block.positions):
                taken.append(self.blocks.popleft())
                continue
            if count:
                taken.append(block.part(slice(None, count)))
                self.blocks[0] = block.part(slice(count, None))
            break
        return taken


@dataclass(slots=True, eq=False)
class _EditLog:
    """What one edit did, over all its sites."""

    cursor: Cursor
    positions: list[np.ndarray] = field(default_factory=list)
    changes: list[np.ndarray] = field(default_factory=list)

    def below(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions below `end`, and what was noted of each, float64."""
        if not self.positions:
            return np.empty(0, np.int64), np.empty((0, 4))
        positions = np.concatenate(self.positions)
        kept = positions < end
        return positions[kept], np.concatenate(self.changes)[kept].astype(np.float64)


class Inbox:
    """Filled by the collector, emptied on the event loop.

    The collector, whose thread may fill it, only appends to deques; every check runs on the loop.
    """

    def __init__(
        self,
        captures: Sequence[Spans],
        edits: Sequence[Edit],
        salt: str | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """`salt` is that of a run whose cached blocks hold edits. With `at_once` any row is worth
        taking."""
        self.salt = salt
        self.at_once = at_once
        self._rows: deque[tuple[int, Block]] = deque()
        self._receipts: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque()
        self._captures = [_CaptureLog(Cursor(spans)) for spans in captures]
        self._edits = edits
        self._logs = [_EditLog(Cursor(edit.selection.spans)) for edit in edits]
        # Each is counted by one side alone, which may be interrupted by the other.
        self._arrived_bytes, self._taken_bytes = 0, 0
        self._arrived_receipts, self._checked_receipts = 0, 0
        self._taken_at = time.monotonic()
        self._failure: str | None = None
        self._distrusts_reused = False
        self._arrived = asyncio.Event()
        self.awaited = False
        """Whether the loop waits for what arrives."""

    # Whoever takes from the ring: the collector's thread, or the loop.

    def put_rows(self, number: int, block: Block) -> None:
        self._rows.append((number, block))
        self._arrived_bytes += block.data.nbytes

    def put_receipts(self, edits: np.ndarray, positions: np.ndarray, changes: np.ndarray) -> None:
        self._receipts.append((edits, positions, changes))
        self._arrived_receipts += len(edits)

    def fail(self, why: str) -> None:
        self._failure = why

    def distrust_reused(self) -> None:
        """Positions that came from the prefix cache may be of a run that could not be decided."""
        self._distrusts_reused = True

    # On the loop.

    def expect(self) -> None:
        """What arrives from now on ends `arrival`."""
        self._arrived.clear()
        self.awaited = True

    async def arrival(self) -> None:
        """Returns once anything has arrived since `expect`."""
        await self._arrived.wait()

    def wake(self) -> None:
        self.awaited = False
        self._arrived.set()

    def due(self) -> bool:
        """Whether what has arrived is worth taking, or the run has failed."""
        unchecked = self._arrived_receipts - self._checked_receipts
        if self._failure is not None or unchecked >= DUE_RECEIPTS:
            return True
        waiting = self._arrived_bytes - self._taken_bytes
        return waiting > 0 and (
            self.at_once or waiting >= DUE_BYTES or time.monotonic() - self._taken_at >= DUE_SECONDS
        )

    def take(self, end: int) -> list[list[Block]]:
        """Removes and returns, for each capture, the rows at positions below `end`.

        Raises `ActserveError` if a row or an edit was skipped, or the run has failed."""
        self._check_rows()
        self._check_receipts()
        self._taken_at = time.monotonic()
        taken = [log.take(end) for log in self._captures]
        self._taken_bytes += sum(block.data.nbytes for blocks in taken for block in blocks)
        return taken

    def complete(self, end: int) -> bool:
        """Whether every row and every edit below position `end` was seen. Raises as `take`."""
        self._check_rows()
        self._check_receipts()
        logs = (*self._captures, *self._logs)
        return all(log.cursor.complete(end) for log in logs)

    def reports(self, ids: Sequence[int]) -> tuple[InterventionReport, ...]:
        """What each intervention did to the tokens that were run.

        Raises `ActserveError` if one was not applied exactly where its selection says.
        """
        self._check_receipts()
        reports = tuple(
            _report(number, edit, log, ids)
            for number, (edit, log) in enumerate(zip(self._edits, self._logs, strict=True))
        )
        if self._distrusts_reused and any(each.reused_rows for each in reports):
            raise ActserveError(
                Reason.INTERVENTION_INCOMPLETE,
                "cached positions that this run has read may be of a run whose condition had no "
                "finite score; the answer is withheld, try again",
                retry_after_s=RETRY_AFTER_S,
            )
        return reports

    def _check_failure(self) -> None:
        if self._failure is not None:
            edited = bool(self._edits)
            raise ActserveError(
                Reason.INTERVENTION_INCOMPLETE if edited else Reason.CAPTURE_INCOMPLETE,
                f"a step of the engine that {'changes' if edited else 'reads'} this run failed "
                f"({self._failure}); the answer is withheld, try again",
                retry_after_s=RETRY_AFTER_S,
            )

    def _check_rows(self) -> None:
        self._check_failure()
        while self._rows:
            self._check_block(*self._rows.popleft())

    def _check_block(self, number: int, block: Block) -> None:
        log = self._captures[number]
        if log.cursor.goes_on(block.positions):
            log.blocks.append(block)
            return
        is_new = log.cursor.advance(block.positions)
        if is_new is None:
            raise _not_captured(int(block.positions[-1]))
        fresh = block if is_new.all() else block.part(is_new)
        self._taken_bytes += block.data.nbytes - fresh.data.nbytes
        if len(fresh.positions):
            log.blocks.append(fresh)

    def _check_receipts(self) -> None:
        self._check_failure()
        if not self._receipts:
            return
        taken = [self._receipts.popleft() for _ in range(len(self._receipts))]
        self._checked_receipts += sum(len(each) for each, *_ in taken)
        edits, positions, changes = (np.concatenate(each) for each in zip(*taken, strict=True))
        # Of each edit together, as they came: a run may have thousands of edits.
        order = np.argsort(edits, kind="stable")
        edits, positions, changes = edits[order], positions[order], changes[order]
        for number, own in by_key(edits):
            log = self._logs[number]
            is_new = log.cursor.advance(positions[own])
            if is_new is None:
                raise _not_applied(number, f"before position {int(positions[own].max())}")
            log.positions.append(positions[own][is_new])
            log.changes.append(changes[own][is_new])


def _report(number: int, edit: Edit, log: _EditLog, ids: Sequence[int]) -> InterventionReport:
    heads, sites = max(1, len(edit.heads)), len(edit.sites)
    at, notes = log.below(len(ids))
    _check_applied(number, edit, ids, at, notes)
    touched = notes[_selected(edit.selection, ids, at)]
    computed = touched[:, 0] >= 0
    fresh, reused = touched[computed], int(np.count_nonzero(~computed))
    if edit.condition is not None:
        fresh = fresh[fresh[:, 3] == MET]
    changed, ratios, *_ = fresh.sum(0)
    return InterventionReport(
        rows=(len(fresh) + reused) * sites * heads,
        changed_rows=int(changed),
        reused_rows=reused * sites * heads,
        mean_relative_change=float(ratios) / (len(fresh) * sites * heads) if len(fresh) else None,
    )


def _selected(selection: Selection, ids: Sequence[int], at: np.ndarray) -> np.ndarray:
    """Which of these positions the selection holds, bool."""
    return np.isin(at, selection.among(ids))


def _check_applied(
    number: int, edit: Edit, ids: Sequence[int], at: np.ndarray, notes: np.ndarray
) -> None:
    """The worker decided by token where to apply, and the server knows the tokens too. Of reused
    positions the worker does not see the tokens. Every other is changed at each of the sites, and
    its condition was decided."""
    applied, reused = notes[:, 0] != UNMATCHED, notes[:, 0] == REUSED
    if edit.condition is not None:
        _check_decided(number, at, notes, applied & ~reused)
    wrong = ~reused & (applied != _selected(edit.selection, ids, at))
    wrong |= ~reused & applied & (notes[:, 2] != len(edit.sites))
    if wrong.any():
        raise _not_applied(number, f"at position {int(at[wrong][0])}")


def _check_decided(number: int, at: np.ndarray, notes: np.ndarray, applied: np.ndarray) -> None:
    infinite = applied & np.isnan(notes[:, 3])
    if infinite.any():
        raise score_not_finite(int(at[infinite][0]), number)
    undecided = applied & ((notes[:, 0] == LOST) | ~np.isin(notes[:, 3], (MET, NOT_MET)))
    if undecided.any():
        raise _not_applied(number, f"at position {int(at[undecided][0])}")


def _not_captured(position: int) -> ActserveError:
    return ActserveError(
        Reason.CAPTURE_INCOMPLETE,
        f"a row before position {position} was not captured; the answer is withheld",
    )


def _not_applied(number: int, where: str) -> ActserveError:
    return ActserveError(
        Reason.INTERVENTION_INCOMPLETE,
        f"the intervention was not applied as asked {where}; the answer is withheld",
        field=("interventions", number),
    )
