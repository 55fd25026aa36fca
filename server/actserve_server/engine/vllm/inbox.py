"""What has arrived from the worker for one run, checked to be neither more nor less than asked.

Positions of a run are computed in ascending order, except that a preempted run starts over; so a
position below the last one seen is a repetition and is dropped, and a position that skips a wanted
one means rows were lost.

The first rows of a position are the right ones to keep: from them the tokens were sampled that the
run went on with, and they may be with the caller already. Those that come again are of the same
tokens, computed in another batch, and differ by rounding. That holds only while no token is taken
back, so speculative decoding is refused when an engine starts, and by the worker at every step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import InterventionReport
from actserve_server.engine.vllm.step_plan import REUSED, UNMATCHED
from actserve_server.engine.vllm.wire import Edit


class Cursor:
    """Walks the wanted positions in order. `next` is the lowest position not yet seen."""

    def __init__(self, wanted: Spans) -> None:
        self._wanted = wanted
        self.next = 0

    def advance(self, positions: np.ndarray) -> int | None:
        """Takes ascending positions; returns how many to drop from the front as repetitions, or
        None if a wanted one is missing."""
        drop = int(np.searchsorted(positions, self.next))
        fresh = positions[drop:]
        if len(fresh):
            end = int(fresh[-1]) + 1
            if not np.array_equal(fresh, self._wanted.within(self.next, end)):
                return None
            self.next = end
        return drop

    def complete(self, end: int) -> bool:
        """Whether every wanted position below `end` was seen."""
        return not len(self._wanted.within(self.next, end))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one run: one uint8 [rows, row bytes] for each of its sites."""

    positions: np.ndarray
    data: tuple[np.ndarray, ...]

    def part(self, rows: slice) -> "Block":
        return Block(self.positions[rows], tuple(each[rows] for each in self.data))


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
class _SiteLog:
    """What one edit did at one of its sites."""

    edit: int
    """Which of the run's interventions it is."""
    cursor: Cursor
    positions: list[np.ndarray] = field(default_factory=list)
    changes: list[np.ndarray] = field(default_factory=list)

    def below(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions below `end`, and what was noted of each."""
        if not self.positions:
            return np.empty(0, np.int64), np.empty((0, 2))
        positions = np.concatenate(self.positions)
        kept = positions < end
        return positions[kept], np.concatenate(self.changes)[kept]


class Inbox:
    """Filled by the collector's thread, emptied on the event loop.

    The thread only appends to deques; every check runs on the loop, in `update`.
    """

    def __init__(self, captures: Sequence[Spans], edits: Sequence[Edit]) -> None:
        self._rows: deque[tuple[int, Block]] = deque()
        self._receipts: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self._captures = [_CaptureLog(Cursor(spans)) for spans in captures]
        self._edits = edits
        self._logs = [
            _SiteLog(number, Cursor(edit.selection.spans))
            for number, edit in enumerate(edits)
            for _ in edit.sites
        ]

    def put_rows(self, number: int, block: Block) -> None:
        self._rows.append((number, block))

    def put_receipt(self, number: int, positions: np.ndarray, changes: np.ndarray) -> None:
        self._receipts.append((number, positions, changes))

    def update(self) -> None:
        """Checks what has arrived. Raises `ActserveError` if a row or an edit was skipped."""
        while self._rows:
            number, block = self._rows.popleft()
            log = self._captures[number]
            drop = log.cursor.advance(block.positions)
            if drop is None:
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE,
                    f"a row before position {int(block.positions[-1])} was not captured; the "
                    "answer is withheld",
                )
            if drop < len(block.positions):
                log.blocks.append(block.part(slice(drop, None)))
        while self._receipts:
            number, positions, changes = self._receipts.popleft()
            log = self._logs[number]
            drop = log.cursor.advance(positions)
            if drop is None:
                raise _not_applied(log.edit, f"before position {int(positions[-1])}")
            if drop < len(positions):
                log.positions.append(positions[drop:])
                log.changes.append(changes[drop:])

    def take(self, end: int) -> list[list[Block]]:
        """Removes and returns, for each capture, the checked rows at positions below `end`."""
        return [log.take(end) for log in self._captures]

    def complete(self, end: int) -> bool:
        """Whether every row and every edit below position `end` was seen."""
        logs = (*self._captures, *self._logs)
        return all(log.cursor.complete(end) for log in logs)

    def reports(self, ids: Sequence[int]) -> tuple[InterventionReport, ...]:
        """What each intervention did to the tokens that were run.

        Raises `ActserveError` if one was not applied exactly where its selection says.
        """
        logs = iter(self._logs)
        return tuple(
            _report(number, edit, [next(logs) for _ in edit.sites], ids)
            for number, edit in enumerate(self._edits)
        )


def _report(
    number: int, edit: Edit, logs: Sequence[_SiteLog], ids: Sequence[int]
) -> InterventionReport:
    heads = max(1, len(edit.heads))
    positions, computed, changed, ratios = 0, 0, 0.0, 0.0
    for log in logs:
        at, notes = log.below(len(ids))
        _check_applied(number, edit.selection, ids, at, notes[:, 0])
        touched = notes[_selected(edit.selection, ids, at)]
        fresh = touched[touched[:, 0] >= 0]
        positions += len(touched)
        computed += len(fresh)
        changed, ratios = changed + fresh[:, 0].sum(), ratios + fresh[:, 1].sum()
    return InterventionReport(
        rows=positions * heads,
        changed_rows=int(changed),
        reused_rows=(positions - computed) * heads,
        mean_relative_change=float(ratios) / (computed * heads) if computed else None,
    )


def _selected(selection: Selection, ids: Sequence[int], at: np.ndarray) -> np.ndarray:
    """Which of these positions the selection holds, bool."""
    return np.isin(at, selection.among(ids))


def _check_applied(
    number: int, selection: Selection, ids: Sequence[int], at: np.ndarray, notes: np.ndarray
) -> None:
    """The worker decided by token where to apply, and the server knows the tokens too. Of reused
    positions the worker does not see the tokens."""
    wrong = (notes != REUSED) & ((notes != UNMATCHED) != _selected(selection, ids, at))
    if wrong.any():
        raise _not_applied(number, f"at position {int(at[wrong][0])}")


def _not_applied(number: int, where: str) -> ActserveError:
    return ActserveError(
        Reason.INTERVENTION_INCOMPLETE,
        f"the intervention was not applied as asked {where}; the answer is withheld",
        field=("interventions", number),
    )
