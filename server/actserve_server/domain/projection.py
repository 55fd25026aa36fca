"""Rows read along given directions: linear probes and the encoders of sparse autoencoders (SAEs).

The edge has checked every tensor: float32, finite and of the right shape. Rows are what the model
computed: a NaN in one shows in its result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.blocks import blocks
from actserve_server.domain.ranking import largest
from actserve_server.domain.tensors import ElementType, held_bytes, rounded


@dataclass(frozen=True, slots=True)
class Identity:
    """y."""

    def apply(self, values: np.ndarray) -> None:
        """Changes nothing."""


@dataclass(frozen=True, slots=True)
class ReLU:
    """max(y, 0)."""

    def apply(self, values: np.ndarray) -> None:
        """Replaces `values`, float32 [n, k], in place."""
        np.maximum(values, 0, out=values)


@dataclass(frozen=True, slots=True, eq=False)
class JumpReLU:
    """y where y > threshold, else 0. `threshold` is float32 [k].

    Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
    Autoencoders", 2024.
    """

    threshold: np.ndarray

    def apply(self, values: np.ndarray) -> None:
        """Replaces `values`, float32 [n, k], in place."""
        # Not a product with y > threshold: that would make NaN of minus infinity.
        np.copyto(values, 0, where=values <= self.threshold)


@dataclass(frozen=True, slots=True)
class TopK:
    """max(y, 0) for the k largest y of a row, else 0; of equal ones the lower direction is kept.

    Gao et al., "Scaling and Evaluating Sparse Autoencoders", 2024, with the ReLU on kept values
    that the authors' code has: a row with fewer than k positive values has fewer than k features.
    """

    k: int

    def apply(self, values: np.ndarray) -> None:
        """Replaces `values`, float32 [n, directions], in place."""
        columns, kept = largest(values, self.k)
        values.fill(0)
        np.put_along_axis(values, columns, np.maximum(kept, 0), axis=1)


Activation = Identity | ReLU | JumpReLU | TopK


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """The largest values of each row, largest first; `indices` say of which direction.

    `indices` is int64 and `values` float32, both [n, top_k].
    """

    indices: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Projection:
    """activation(x @ directions.T + bias), accumulated in float32.

    `directions` is float32 [k, width], `bias` float32 [k]. A bias p that an SAE subtracts from its
    input is part of this one: bias - directions @ p.
    """

    directions: np.ndarray
    bias: np.ndarray | None = None
    activation: Activation = Identity()
    lasting: bool = False
    """Whether many runs will have it, so that an engine may hold it between them."""
    element_type: ElementType = ElementType.F32
    """To which `directions` are rounded before they are multiplied, each number by itself, so that
    an engine may hold and multiply them in it. Sums, bias and activation are float32 all the
    same."""

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Every value of `rows`, float32 [n, width], as float32 [n, k]."""
        values = np.empty((len(rows), len(self.directions)), np.float32)
        for block in blocks(*values.shape):
            for columns, part in self.parts():
                # A transposed view goes to BLAS as it is, so no copy of the directions is made.
                np.matmul(rows[block], part.T, out=values[block, columns])
            if self.bias is not None:
                values[block] += self.bias
            self.activation.apply(values[block])
        return values

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The directions as they are multiplied, float32: which, and their rows. Those that have to
        be rounded come a part at a time, since all of them would be another copy."""
        if self.element_type is ElementType.F32:
            yield slice(0, len(self.directions)), self.directions
            return
        for part in blocks(*self.directions.shape):
            yield part, rounded(self.directions[part], self.element_type)

    @property
    def nbytes(self) -> int:
        """Of everything that has a number for each direction, as an engine holds it."""
        parts = [self.bias]
        if isinstance(self.activation, JumpReLU):
            parts.append(self.activation.threshold)
        others = sum(each.nbytes for each in parts if each is not None)
        return held_bytes(self.directions.size, self.element_type) + others

    def top(self, rows: np.ndarray, top_k: int) -> SparseRows:
        """The `top_k` largest values of each of `rows`, float32 [n, width], after the activation.

        The result is [n, min(top_k, k)]. Of equal values the lower direction comes first, so a row
        with fewer features than asked for is filled up with zeros of the first other directions.
        Holds the values of one block of rows at a time, never all of them.
        """
        count = min(top_k, len(self.directions))
        top = SparseRows(
            np.empty((len(rows), count), np.int64), np.empty((len(rows), count), np.float32)
        )
        for block in blocks(len(rows), len(self.directions)):
            top.indices[block], top.values[block] = largest(self.apply(rows[block]), count)
        return top


@dataclass(frozen=True, slots=True)
class Projected:
    """Reads a row as its components along directions.

    What comes back in place of the row is float32 [`width`], see `split`.
    """

    projection: Projection
    top_k: int | None = None
    """How many of the largest components to report; all if None. At most as many as directions."""

    @property
    def width(self) -> int:
        return len(self.projection.directions) if self.top_k is None else 2 * self.top_k

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """What comes back of `rows`, float32 [n, row width]."""
        if self.top_k is None:
            return self.projection.apply(rows)
        top = self.projection.top(rows, self.top_k)
        return np.concatenate([top.indices.astype(np.float32), top.values], axis=1)

    def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The components, float32, and the direction of each, int64, or None if all are there."""
        if self.top_k is None:
            return rows, None
        # Exact: a float32 holds every integer up to 2^24.
        return rows[:, self.top_k :], rows[:, : self.top_k].astype(np.int64)


MAX_DIRECTIONS = 1 << 24
"""That `Projected` can number."""
