"""The direction in which rows of two kinds differ, by three methods.

All are computed in float64, and depend on the rows and their order alone.
"""

from dataclasses import dataclass

import numpy as np

from actserve_server.steering.stored_vectors import Method

NEWTON_STEPS = 100
"""The most of a logistic regression. It takes about ten, and fewer than twenty where rows can be
told apart by a plane, since the penalty keeps the weights short."""
GRADIENT = 1e-9
"""The regression is over once its gradient is this part of what it was at weights of zero."""
NOTHING = 1e-11
"""What is no more than this beside what it was computed from is the rounding of float64."""
ROUNDING = 1e-6
"""A column whose deviation is a smaller part of its largest value than this is the same in all
rows: rows come rounded to float32 or coarser, and what rounding leaves must not be scaled up."""


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
    """The direction whose component of a row, as it is, is the regression's score."""
    rows = np.concatenate([positive, negative])
    signs = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    largest = np.abs(rows).max(axis=0)
    rows -= rows.mean(axis=0)
    deviations = np.sqrt(np.einsum("nw,nw->w", rows, rows) / len(rows))
    told = deviations > ROUNDING * largest
    scale = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=told)
    rows *= scale
    weights = _logistic_weights(rows, signs)
    if np.linalg.norm(weights) <= NOTHING:
        return np.zeros_like(weights)
    # w . (x / s) = (w / s) . x
    return _unit(weights * scale)


def _logistic_weights(rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """w that, with a bias b, minimizes the sum of log(1 + exp(-sign (w . x + b))) over the rows
    plus |w|^2 / 2, by Newton's method; each step is solved by conjugate gradients, and halved until
    it leads down."""
    width = rows.shape[1]
    at = np.zeros(width + 1)  # The weights, then the bias.
    loss, gradient, curvature = _logistic(rows, signs, at)
    first = np.linalg.norm(gradient)
    for _ in range(NEWTON_STEPS):
        steepness = np.linalg.norm(gradient)
        if steepness <= GRADIENT * first:
            break
        # The nearer, the more exactly: a first step need not be (Dembo, Eisenstat and Steihaug,
        # "Inexact Newton methods", 1982).
        step = _solve(rows, curvature, -gradient, float(min(0.1, steepness / first)))
        slope, length = gradient @ step, 1.0
        while True:
            new = at + length * step
            found = _logistic(rows, signs, new)
            if found[0] <= loss + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:  # As low as float64 tells.
                return at[:-1]
        at, (loss, gradient, curvature) = new, found
    return at[:-1]


def _logistic(
    rows: np.ndarray, signs: np.ndarray, at: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss, its gradient, and of each row the second derivative by its score."""
    weights, bias = at[:-1], at[-1]
    margins = signs * (rows @ weights + bias)
    wrong = np.exp(-np.logaddexp(0, margins))  # 1 / (1 + exp(margin)), without overflow.
    by_score = -signs * wrong
    loss = np.logaddexp(0, -margins).sum() + weights @ weights / 2
    gradient = np.append(rows.T @ by_score + weights, by_score.sum())
    return float(loss), gradient, wrong * (1 - wrong)


def _solve(
    rows: np.ndarray, curvature: np.ndarray, wanted: np.ndarray, accuracy: float
) -> np.ndarray:
    """The s for which the second derivatives of the loss times s are `wanted`, up to this part."""
    found = np.zeros_like(wanted)
    left = wanted.copy()
    way = left.copy()
    squares = left @ left
    enough = accuracy**2 * squares
    for _ in range(len(rows) + 1):  # As many as it takes without rounding, and rarely so many.
        if squares <= enough:
            break
        along = curvature * (rows @ way[:-1] + way[-1])
        moved = np.append(rows.T @ along + way[:-1], along.sum())
        length = squares / (way @ moved)
        found += length * way
        left -= length * moved
        before, squares = squares, left @ left
        way = left + squares / before * way
    return found


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
