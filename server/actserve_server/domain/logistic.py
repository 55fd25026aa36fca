"""Logistic regression, by Newton's method in float64. Depends on the rows and their order alone."""

from dataclasses import dataclass

import numpy as np

NEWTON_STEPS = 100
"""The most of a logistic regression. It takes about ten, and fewer than twenty where rows can be
told apart by a plane, since the penalty keeps the weights short."""
GRADIENT = 1e-9
"""The regression is over once its gradient is this part of what it was at weights of zero."""
ROUNDING = 1e-6
"""A column whose deviation is a smaller part of its largest value than this is the same in all
rows: rows come rounded to float32 or coarser, and what rounding leaves must not be scaled up."""
NOTHING = 1e-11
"""Weights of rows of unit variance that are no longer than this are the rounding of float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """The log odds that a row x is positive: weights . x + bias. `weights` is float64 [width]; zero
    if nothing tells the rows apart."""

    weights: np.ndarray
    bias: float


def logistic_regression(rows: np.ndarray, is_positive: np.ndarray) -> Logistic:
    """Of rows [n, width] of two kinds, at least one of each. Each column is brought to unit
    variance first, and the penalty |w|^2 / 2 is of the weights of that; one that is the same in all
    rows has the weight zero."""
    rows = rows.astype(np.float64)
    largest, mean = np.abs(rows).max(axis=0), rows.mean(axis=0)
    rows -= mean
    deviations = np.sqrt(np.einsum("nw,nw->w", rows, rows) / len(rows))
    told = deviations > ROUNDING * largest
    scale = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=told)
    rows *= scale
    least = _least(rows, np.where(is_positive, 1.0, -1.0))
    weights, bias = least[:-1], least[-1]
    if np.linalg.norm(weights) <= NOTHING:
        weights = np.zeros_like(weights)
    # w . ((x - m) / s) + b = (w / s) . x + (b - (w / s) . m)
    weights = weights * scale
    return Logistic(weights, float(bias - weights @ mean))


def _least(rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The w and then the b that minimize the sum of log(1 + exp(-sign (w . x + b))) over the rows
    plus |w|^2 / 2, by Newton's method; each step is solved by conjugate gradients, and halved until
    it leads down."""
    at = np.zeros(rows.shape[1] + 1)
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
                return at
        at, (loss, gradient, curvature) = new, found
    return at


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
