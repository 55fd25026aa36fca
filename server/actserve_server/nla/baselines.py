"""What the fraction of variance explained is relative to, measured from rows.

Checkpoints rarely say it, and a made-up one would make every score wrong, so without one there is
no such score.
"""

import re

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla.profile import Baseline
from actserve_server.nla.scores import NEGLIGIBLE, normalized

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def measure(rows: np.ndarray) -> Baseline:
    """The baseline of rows [rows, width], finite and none zero, of any scale.

    Its variance is that of Fraser-Taliente et al., 2026: the mean squared distance, over elements
    and rows, from the mean of the rows once each has an L2 norm of sqrt(width).

    Raises TENSOR_DEGENERATE for fewer than two rows and for rows that all point the same way.
    """
    if len(rows) < 2:
        raise _degenerate(
            f"{len(rows)} rows have no variance; send two at least, and some hundreds for a "
            "baseline to rely on",
            rows=len(rows),
            minimum=2,
        )
    centered, norms = normalized(rows)
    mean = centered.mean(axis=0)
    centered -= mean
    variance = float(np.vdot(centered, centered) / centered.size)
    if variance <= NEGLIGIBLE**2:
        raise _degenerate(
            f"all {len(rows)} rows point the same way: once they have the same norm their variance "
            f"is {variance:.1e}, but must be above {NEGLIGIBLE**2:g}; send rows of various texts",
            variance=variance,
            limit=NEGLIGIBLE**2,
        )
    return Baseline(
        variance=variance,
        mean=mean.astype(np.float32),
        median_norm=float(np.median(norms)),
        rows=len(rows),
    )


def check_name(name: str) -> None:
    """Raises FIELD_INVALID unless it can be the short name of a baseline."""
    if not _NAME.fullmatch(name):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{name[:100]!r} cannot name a baseline; use 1 to 63 lower-case letters, digits and "
            "hyphens, with no hyphen first or last",
            field=("name",),
        )


def _degenerate(message: str, **metadata: object) -> ActserveError:
    return ActserveError(
        Reason.TENSOR_DEGENERATE, message, field=("activations",), metadata=metadata
    )
