"""How rows are distributed over many sequences, by label: count, mean and second moments.

Everything is summed in float64, about the mean so far, so that nothing cancels where a mean is
large beside its deviations, as in a residual stream. Two parts of a corpus merge as two blocks of
rows do (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason

ENTRY_BYTES = 512
"""What a label takes at a site beside its sums."""
SUM_BYTES = 8
RETRY_AFTER_S = 5.0
"""About the time that a call with statistics takes."""


class Moments:
    """Of the rows that came: `count`, `mean` [width], and `deviations`, the sums of squares about
    the mean [width] or, if `full`, of products [width, width]. float64."""

    def __init__(self, width: int, *, full: bool) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.deviations = np.zeros((width, width) if full else width)
        self._full = full

    def add(self, rows: np.ndarray) -> None:
        """Takes rows [n, width]."""
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        deviations = rows.T @ rows if self._full else np.einsum("nw,nw->w", rows, rows)
        self._merge(len(rows), mean, deviations)

    def merge(self, other: "Moments") -> None:
        """Takes the rows that another has taken."""
        if other.count:
            self._merge(other.count, other.mean, other.deviations)

    @property
    def second(self) -> np.ndarray:
        """The second moments about the mean: variances [width], or covariances [width, width]."""
        return self.deviations / self.count

    def _merge(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        total = self.count + count
        step = mean - self.mean
        product = np.outer(step, step) if self._full else step * step
        self.deviations += deviations + product * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total


@dataclass(frozen=True, slots=True, eq=False)
class RowLabels:
    """Which labels the rows of one sequence have."""

    whole: str | None = ""
    """That of every row; None if only positions have labels."""
    parts: tuple[tuple[str, np.ndarray], ...] = ()
    """Labels of some positions, with these, int64 and ascending."""

    def of(self, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each label, with which of the rows of these positions have it, as a mask."""
        if self.whole is not None:
            yield self.whole, np.ones(len(positions), bool)
        for label, where in self.parts:
            yield label, np.isin(positions, where)


Key = tuple[int, int, str]
"""Readout, site index and label."""


@dataclass(slots=True, eq=False)
class Statistics:
    """By readout, site and label."""

    moments: dict[Key, Moments] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many sums there are."""
        return sum(each.deviations.size for each in self.moments.values())

    def add(self, key: Key, rows: np.ndarray, *, full: bool) -> None:
        """Takes rows [n, width] of a label."""
        if len(rows):
            self._of(key, rows.shape[1], full=full).add(rows)

    def merge(self, other: "Statistics") -> None:
        """Takes all that another has taken."""
        for key, moments in other.moments.items():
            full = moments.deviations.ndim > 1
            self._of(key, len(moments.mean), full=full).merge(moments)

    def _of(self, key: Key, width: int, *, full: bool) -> Moments:
        if key not in self.moments:
            self.moments[key] = Moments(width, full=full)
        return self.moments[key]


def held_bytes(widths: Sequence[int], labels: int, *, full: bool) -> int:
    """What the statistics of a readout of such rows take at most."""
    numbers = (width * (1 + (width if full else 1)) for width in widths)
    return labels * sum(SUM_BYTES * each + ENTRY_BYTES for each in numbers)


class Memory:
    """What the statistics of all calls take together, or whatever `what` names: at most `limit`
    bytes."""

    def __init__(self, limit: int, what: str = "statistics") -> None:
        self._limit = limit
        self._what = what
        self._held = 0

    @contextmanager
    def held(self, wanted: int) -> Iterator[None]:
        """Holds so many bytes. Raises QUEUE_FULL if they are not there."""
        if self._held + wanted > self._limit:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"the {self._what} of this call take {wanted} bytes, and those of others leave "
                f"{self._limit - self._held} of {self._limit}; try again in {RETRY_AFTER_S:g} s",
                metadata={"limit": self._limit},
                retry_after_s=RETRY_AFTER_S,
            )
        self._held += wanted
        try:
            yield
        finally:
            self._held -= wanted
