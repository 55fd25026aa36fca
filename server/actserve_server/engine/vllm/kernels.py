"""The formulas of `engine/forms.py`, for many runs' rows at once.

A step needs one gather and one formula for all the rows that a kernel changes at a site, whatever
their runs and vectors.
"""

from collections.abc import Callable, Mapping

import torch

from actserve_server.engine.forms import Kernel


def _add(x: torch.Tensor, vectors: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    return x + vectors[:, 0]


def _along_rows(x: torch.Tensor, vectors: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    u = vectors[:, 0]
    gain, low, high, push = scalars.unbind(1)
    component = (x * u).sum(1)
    bounded = torch.minimum(torch.maximum(gain * component, low), high)
    step = bounded - component + push * torch.linalg.vector_norm(x, dim=1)
    return x + step[:, None] * u


def _linear(x: torch.Tensor, vectors: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    readers, writers = vectors[0].chunk(2)
    return scalars[:, :1] * x + (x @ readers.T) @ writers


def _replace(x: torch.Tensor, vectors: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    return vectors[:, 0]


def change_features(
    x: torch.Tensor,
    features: torch.Tensor | None,
    vectors: torch.Tensor,
    scalars: torch.Tensor,
) -> torch.Tensor:
    """FEATURES: the new rows from x, float32 [rows, width], and from its features, float32 [rows,
    n], which may be missing where no gain differs from one. One set of vectors and scalars."""
    gains, offsets = scalars[0].chunk(2)
    change = offsets if features is None else features * (gains - 1) + offsets
    return x + change.expand(len(x), -1) @ vectors[0]


COMPUTE: Mapping[Kernel, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Kernel.ADD: _add,
    Kernel.ALONG: _along_rows,
    Kernel.LINEAR: _linear,
    Kernel.REPLACE: _replace,
}
"""The new rows from x, float32 [rows, width]. Vectors are float32 [rows or 1, n, width], scalars
[rows or 1, n]; LINEAR takes one set of vectors for all rows, since one for each would be large."""


def change_of(
    before: torch.Tensor, after: torch.Tensor, room: torch.Tensor | None = None
) -> torch.Tensor:
    """How rows changed, float32 [rows, 2]: 1 if at all, and |x' - x| / |x| (1 for a zero row).
    The differences go to `room`, float32 as the rows; it may be `after`, which then is lost."""
    # Of halves, whose difference is a float32 too; and sums in float64, where no square overflows.
    half = torch.mul(after, 0.5, out=room).sub_(before, alpha=0.5)
    change = 2 * torch.linalg.vector_norm(half, dim=1, dtype=torch.float64)
    size = torch.linalg.vector_norm(before, dim=1, dtype=torch.float64)
    changed = (change != 0).double()
    return torch.stack([changed, torch.where(size > 0, change / size, changed)], dim=1).float()
