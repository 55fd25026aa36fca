"""The direction in which rows of two kinds differ, by three methods.

All are computed in float64, and depend on the rows and their order alone.
"""

from dataclasses import dataclass

import numpy as np

from actserve_server.domain.logistic import logistic_regression
from actserve_server.steering.stored_vectors import Method

NOTHING = 1e-11
"""What is no more than this beside what it was computed from is the rounding of float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows of a site of two kinds, [positives, width] and [negatives, width], at least one each.
    To `Method.PCA` they are pairs in order, as many of a kind."""

    positive: np.ndarray
    negative: np.ndarray

    @property
    def least(self) -> int:
        """How many there are of the kind that has fewer."""
        return min(len(self.positive), len(self.negative))

    def part(self, number: int, parts: int, *, without: bool = False) -> "Examples":
        """Of as many parts the one of this number, or all `without` it. Every part has of each kind
        its share, and pairs are in the same one."""
        positive, negative = (
            (np.arange(len(rows)) % parts == number) != without
            for rows in (self.positive, self.negative)
        )
        return Examples(self.positive[positive], self.negative[negative])

    def median_norm(self) -> float:
        """The median L2 norm of all rows."""
        norms = [
            np.linalg.norm(rows.astype(np.float64), axis=1)
            for rows in (self.positive, self.negative)
        ]
        return float(np.median(np.concatenate(norms)))


def direction(examples: Examples, method: Method) -> np.ndarray:
    """float64 [width]; zero if the examples show none, such as if both kinds are the same."""
    positive, negative = (
        rows.astype(np.float64) for rows in (examples.positive, examples.negative)
    )
    match method:
        case Method.MEAN_DIFFERENCE:
            return _mean_difference(positive, negative)
        case Method.PCA:
            return _first_component(positive - negative)
        case Method.LOGISTIC_REGRESSION:
            return _regression(positive, negative)


def _mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    means = positive.mean(axis=0), negative.mean(axis=0)
    found = means[0] - means[1]
    # The same rows in another order have sums that differ in their last bits.
    is_rounding = np.linalg.norm(found) <= NOTHING * max(map(np.linalg.norm, means))
    return np.zeros_like(found) if is_rounding else found


def _first_component(differences: np.ndarray) -> np.ndarray:
    """The unit vector along which they are largest, turned along their mean.

    About zero and not about their mean, which is most of what is looked for. Zou et al. take the
    pairs in random order, so that the mean of the differences vanishes; about zero the order does
    not matter.
    """
    count, width = differences.shape
    if not differences.any():
        return np.zeros(width)
    if count < width:
        # The same by the smaller matrix: if D D' a = s a, then D' a is along the component.
        _, vectors = np.linalg.eigh(differences @ differences.T)
        found = _unit(differences.T @ vectors[:, -1])
    else:
        _, vectors = np.linalg.eigh(differences.T @ differences)
        found = vectors[:, -1]
    return -found if differences.mean(axis=0) @ found < 0 else found


def _regression(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The unit vector whose component of a row is the regression's score, up to a factor."""
    rows = np.concatenate([positive, negative])
    is_positive = np.repeat([True, False], [len(positive), len(negative)])
    return _unit(logistic_regression(rows, is_positive).weights)


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
