"""Between which edges the scores of a monitor are counted: close to its thresholds closely, where
what is near matters, and far away ever more widely, so that every score is told from most others.
"""

from collections.abc import Sequence

import numpy as np

_NEAR = 16
"""Edges a quarter of the unit apart, on each side of the thresholds."""
_FAR = 6
"""Edges beyond those, each twice as far away as the one before."""
_BETWEEN = 8
"""Parts that two thresholds are apart."""


def score_edges(thresholds: Sequence[float]) -> np.ndarray:
    """Of one threshold or two, the lower first: float32, ascending. The unit is how far the two are
    apart; of one, how far it is from zero, and at least one."""
    low, high = thresholds[0], thresholds[-1]
    unit = high - low if high > low else max(1.0, abs(low))
    steps = [each / 4 for each in range(1, _NEAR + 1)]
    steps += [_NEAR / 4 * 2**each for each in range(1, _FAR + 1)]
    away = unit * np.array(steps)
    between = np.linspace(low, high, _BETWEEN + 1)
    with np.errstate(over="ignore"):
        edges = np.concatenate([low - away, between, high + away]).astype(np.float32)
    return np.unique(edges[np.isfinite(edges)])


def write_edges(edges: np.ndarray) -> bytes:
    return np.ascontiguousarray(edges, "<f4").tobytes()


def read_edges(stored: bytes) -> np.ndarray:
    """Float32, ascending."""
    return np.frombuffer(stored, "<f4")
