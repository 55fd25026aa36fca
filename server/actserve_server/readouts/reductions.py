"""Many rows of a sequence to one, as they come.

A reducer keeps its running state alone, so a long sequence costs no more memory than a short one.
The rows of a sequence come in blocks in ascending order of position; where the blocks are cut
changes no bit of the result.
"""

from enum import StrEnum
from typing import Protocol

import numpy as np


class Reducer(Protocol):
    """Reduces the rows of one sequence, elementwise."""

    def add(self, rows: np.ndarray) -> None:
        """Takes the next rows, float32 [n, width]; n may be zero."""
        ...

    def result(self) -> np.ndarray | None:
        """The reduced row so far, float32 [width]; None if no row came."""
        ...


class Reduction(StrEnum):
    """How to reduce the rows of a sequence to one."""

    LAST = "last"
    MEAN = "mean"
    MAX = "max"

    def start(self) -> Reducer:
        """A reducer for one sequence at one site."""
        return _REDUCERS[self]()


class Last:
    """The row of the last position."""

    def __init__(self) -> None:
        self._row: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        if len(rows):
            # A view would keep the whole block alive.
            self._row = rows[-1].copy()

    def result(self) -> np.ndarray | None:
        return self._row


class Mean:
    """The mean row, summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        """Rows that came."""
        self._total: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        # One by one: sums of blocks would round according to where the blocks are cut.
        for row in rows:
            if self._total is None:
                self._total = np.zeros(row.shape, np.float64)
            self._total += row
            self.count += 1

    def result(self) -> np.ndarray | None:
        return None if self._total is None else (self._total / self.count).astype(np.float32)


class Max:
    """The largest value of each element. A NaN stays."""

    def __init__(self) -> None:
        self._row: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        if len(rows):
            largest = rows.max(axis=0)
            self._row = largest if self._row is None else np.maximum(self._row, largest)

    def result(self) -> np.ndarray | None:
        return self._row


_REDUCERS: dict[Reduction, type[Reducer]] = {
    Reduction.LAST: Last,
    Reduction.MEAN: Mean,
    Reduction.MAX: Max,
}
