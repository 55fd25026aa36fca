"""Vectors computed from vectors, row by row."""

from collections.abc import Sequence

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.independence import INDEPENDENCE, independence

NOTHING_LEFT = 1e-6
"""What is a smaller part of what it was made of is zero but for rounding to float32."""


def combine(
    terms: Sequence[tuple[float, np.ndarray]],
    without: Sequence[np.ndarray] = (),
    norm: float | None = None,
) -> np.ndarray:
    """The sum of coefficients times vectors, less its projection onto the span of the vectors
    `without`, each row scaled to `norm`: float32 [rows, width]. All vectors have this shape, and
    each row is computed by itself, in float64.

    Raises TENSOR_DEGENERATE where nothing is left of a row or the vectors `without` are not
    independent, TENSOR_NOT_FINITE where float32 does not hold the norm of one.
    """
    rows = [
        _row(
            [(coefficient, vector[index].astype(np.float64)) for coefficient, vector in terms],
            np.stack([vector[index] for vector in without]) if without else None,
            norm,
            index,
        )
        for index in range(len(terms[0][1]))
    ]
    combined = np.stack(rows)
    norms = np.linalg.norm(combined, axis=1)
    if norms.max() > np.finfo(np.float32).max:
        index = int(norms.argmax())
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"row {index} of the result has a norm of {norms[index]:.3g}, which float32 does not "
            "hold; use smaller coefficients, or a norm",
            field=("terms",),
            metadata={"row": index},
        )
    return combined.astype(np.float32)


def _row(
    terms: Sequence[tuple[float, np.ndarray]],
    without: np.ndarray | None,
    norm: float | None,
    index: int,
) -> np.ndarray:
    total = np.sum([coefficient * row for coefficient, row in terms], axis=0)
    if without is not None:
        total = _orthogonal(total, without, index)
    length = np.linalg.norm(total)
    most = sum(abs(coefficient) * np.linalg.norm(row) for coefficient, row in terms)
    if length <= NOTHING_LEFT * most:
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            f"row {index} of the result is zero, which points nowhere: the terms cancel, or what "
            "is taken out of them is all there is; change the terms or without",
            field=("terms",),
            metadata={"row": index},
        )
    return total if norm is None else total * (norm / length)


def _orthogonal(row: np.ndarray, directions: np.ndarray, index: int) -> np.ndarray:
    """The row less its projection onto the span of directions that are not zero."""
    found = independence(directions)
    if found < INDEPENDENCE:
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            f"the vectors without are not independent in row {index}: divided by their norms, "
            f"their least singular value is {found:.1e}, and must be at least {INDEPENDENCE:g}; "
            "leave out those that others make up",
            field=("without",),
            metadata={"row": index, "singular_value": found, "limit": INDEPENDENCE},
        )
    basis, _ = np.linalg.qr(directions.astype(np.float64).T)
    # Twice, so that what rounding leaves of a long part along them is gone too.
    for _ in range(2):
        row = row - basis @ (basis.T @ row)
    return row
