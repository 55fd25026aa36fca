"""Whether directions are independent enough to compute with."""

import numpy as np

INDEPENDENCE = 1e-4
"""The least singular value that directions, each divided by its norm, must have. Dependent ones
have about 1e-7, rounded to float32; two at an angle of a hundredth of a degree have this much."""


def independence(directions: np.ndarray) -> float:
    """The least singular value of directions [n, width] that are not zero, each divided by its
    norm; zero where there are more of them than they are wide."""
    if len(directions) > directions.shape[1]:
        return 0.0
    units = directions.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return float(np.linalg.svd(units, compute_uv=False)[-1])
