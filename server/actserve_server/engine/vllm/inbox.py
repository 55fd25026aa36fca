"""What has arrived from the worker for one run, checked to be neither more nor less than asked.

Positions of a run are computed in ascending order, except that a preempted run starts over; so a
position below the last one seen is a repetition and is dropped, and a position that skips a wanted
one means rows were lost.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import Spans


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


Block = tuple[np.ndarray, np.ndarray]
"""Positions, [rows], and rows as bytes, [sites, rows, row bytes]."""


class Inbox:
    """Filled by the collector's thread, emptied on the event loop.

    The thread only appends to deques; every check runs on the loop, in `update`.
    """

    def __init__(self, capture: Spans, edits: Sequence[Spans]) -> None:
        self._rows: deque[Block] = deque()
        self._receipts: deque[tuple[int, np.ndarray]] = deque()
        self._capture = Cursor(capture)
        self._edits = [Cursor(spans) for spans in edits]
        self._checked: deque[Block] = deque()
        self.edited_rows = 0

    def put_rows(self, positions: np.ndarray, data: np.ndarray) -> None:
        self._rows.append((positions, data))

    def put_receipt(self, edit: int, positions: np.ndarray) -> None:
        self._receipts.append((edit, positions))

    def update(self) -> None:
        """Checks what has arrived. Raises `ActserveError` if a row or an edit was skipped."""
        while self._rows:
            positions, data = self._rows.popleft()
            drop = self._capture.advance(positions)
            if drop is None:
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE,
                    f"a row before position {int(positions[-1])} was not captured; the answer is "
                    "withheld",
                )
            if drop < len(positions):
                self._checked.append((positions[drop:], data[:, drop:]))
        while self._receipts:
            number, positions = self._receipts.popleft()
            drop = self._edits[number].advance(positions)
            if drop is None:
                raise ActserveError(
                    Reason.INTERVENTION_INCOMPLETE,
                    f"intervention {number} was not applied before position {int(positions[-1])}; "
                    "the answer is withheld",
                )
            self.edited_rows += len(positions) - drop

    def take(self, end: int) -> list[Block]:
        """Removes and returns the checked rows at positions below `end`."""
        taken: list[Block] = []
        while self._checked:
            positions, data = self._checked[0]
            count = int(np.searchsorted(positions, end))
            if count == len(positions):
                taken.append(self._checked.popleft())
                continue
            if count:
                taken.append((positions[:count], data[:, :count]))
                self._checked[0] = (positions[count:], data[:, count:])
            break
        return taken

    def complete(self, end: int) -> bool:
        """Whether every row and every edit below position `end` was seen."""
        return self._capture.complete(end) and all(edit.complete(end) for edit in self._edits)
