"""Operations in the four forms in which a worker computes them, many runs' rows at once.

Every operation of `domain/operations.py`, which defines them, is one of

    ADD       x + v
    ALONG     x + (min(max(g x.u, lo), hi) - x.u + p |x|) u
    LINEAR    s x + (x R^T) W
    REPLACE   v

so that a step needs one gather and one formula for all the rows that a form changes at a site,
whatever their runs and vectors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
    unit,
)


class Kernel(IntEnum):
    ADD = 0
    ALONG = 1
    LINEAR = 2
    REPLACE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """An operation as numbers: a kernel, its vectors (float32 [n, width]), and its scalars.

    ADD and ALONG have one vector. LINEAR has the rows of R and then those of W. REPLACE has one
    for all positions, or one for each in ascending order. ALONG has the scalars g, lo, hi, p and
    LINEAR has s.
    """

    kernel: Kernel
    vectors: np.ndarray
    scalars: tuple[float, ...] = ()


def form_of(operation: Operation) -> Form:
    """The form of an operation. `Zero` has a vector of width 1, which stands for any."""
    match operation:
        case Add(vector, coefficient, relative=False):
            return Form(Kernel.ADD, (np.float32(coefficient) * vector)[None])
        case Add(vector, coefficient):
            return _along(vector, push=coefficient)
        case Ablate(direction, coefficient):
            return _along(direction, gain=1.0 - coefficient)
        case Clamp(direction, minimum, maximum):
            low = -math.inf if minimum is None else minimum
            return _along(direction, low=low, high=math.inf if maximum is None else maximum)
        case Project(away=True):
            basis = operation.basis
            return Form(Kernel.LINEAR, np.concatenate([basis, -basis]), (1.0,))
        case Project():
            return Form(Kernel.LINEAR, np.concatenate([operation.basis] * 2), (0.0,))
        case Swap():
            return form_of(operation.reflection)
        case Replace(rows):
            return Form(Kernel.REPLACE, rows)
        case Zero():
            return Form(Kernel.REPLACE, np.zeros((1, 1), np.float32))
        case Mean(mean):
            return Form(Kernel.REPLACE, mean[None])


def _along(
    direction: np.ndarray,
    *,
    gain: float = 1.0,
    low: float = -math.inf,
    high: float = math.inf,
    push: float = 0.0,
) -> Form:
    return Form(Kernel.ALONG, unit(direction)[None], (gain, low, high, push))


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


COMPUTE: Mapping[Kernel, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    Kernel.ADD: _add,
    Kernel.ALONG: _along_rows,
    Kernel.LINEAR: _linear,
    Kernel.REPLACE: _replace,
}
"""The new rows from x, float32 [rows, width]. Vectors are float32 [rows or 1, n, width], scalars
[rows or 1, n]; LINEAR takes one set of vectors for all rows, since one for each would be large."""


def change_of(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How rows changed, float32 [rows, 2]: 1 if at all, and |x' - x| / |x| (1 for a zero row)."""
    # In float64, where no square of a float32 overflows.
    size = torch.linalg.vector_norm(before, dim=1, dtype=torch.float64)
    change = torch.linalg.vector_norm(after.double() - before, dim=1)
    changed = (after != before).any(1).double()
    return torch.stack([changed, torch.where(size > 0, change / size, changed)], dim=1).float()
