"""Linear probes in closed form, of the mean row of each example."""

import numpy as np

from actserve_server.domain.logistic import logistic_regression

NOTHING = 1e-11
"""A difference of means that is no longer than this, beside them, is the rounding of float64."""


def logistic(means: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, float]:
    """The w and b of the log odds w . x + b, by logistic regression on mean rows [n, width]; w is
    zero if nothing tells them apart."""
    found = logistic_regression(means, is_positive)
    return found.weights, found.bias


def mean_difference(means: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, float]:
    """The difference w of the mean rows of both kinds, and the b with which w . x + b is zero
    half-way between them; w is zero if they are the same."""
    means = means.astype(np.float64)
    positive, negative = means[is_positive].mean(axis=0), means[~is_positive].mean(axis=0)
    found = positive - negative
    if np.linalg.norm(found) <= NOTHING * max(np.linalg.norm(positive), np.linalg.norm(negative)):
        found = np.zeros_like(found)
    return found, float(-found @ (positive + negative) / 2)
