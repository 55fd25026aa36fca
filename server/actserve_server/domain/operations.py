"""What an intervention does to a row, as formulas.

`apply` is the definition, in numpy and float32; engines may compute it another way but to the same
result. A row `x` has shape [width]; `apply` takes many, [rows, width], and returns new ones. The
edge has checked every tensor: finite, of the right width, directions not zero and independent.
"""

from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.projection import Projection


@dataclass(frozen=True, eq=False)
class Add:
    """x + c v, or when `relative` x + c |x| v / |v|. `vector` is float32 [width].

    The relative form keeps one coefficient meaningful over layers, whose norms differ by orders of
    magnitude.
    """

    vector: np.ndarray
    coefficient: float = 1.0
    relative: bool = False

    def apply(self, rows: np.ndarray) -> np.ndarray:
        if self.relative:
            scale = (self.coefficient * _norms(rows)).astype(np.float32)
            return rows + np.outer(scale, unit(self.vector))
        return rows + np.float32(self.coefficient) * self.vector


@dataclass(frozen=True, eq=False)
class Ablate:
    """x - c (x . u) u, with u = v / |v|. `direction` is float32 [width].

    Directional ablation as in Arditi et al., "Refusal in Language Models Is Mediated by a Single
    Direction", 2024.
    """

    direction: np.ndarray
    coefficient: float = 1.0

    def apply(self, rows: np.ndarray) -> np.ndarray:
        u = unit(self.direction)
        return rows - np.float32(self.coefficient) * np.outer(rows @ u, u)


@dataclass(frozen=True, eq=False)
class Project:
    """P x, or when `away` x - P x, with P the orthogonal projection onto the span of the rows of
    `directions`, float32 [directions, width].

    Making one may take seconds, and is not for the event loop.
    """

    directions: np.ndarray
    away: bool = False
    basis: np.ndarray = field(init=False)
    """An orthonormal basis of the span, float32 [directions, width]."""

    def __post_init__(self) -> None:
        q, _ = np.linalg.qr(self.directions.astype(np.float64).T)
        object.__setattr__(self, "basis", np.ascontiguousarray(q.T).astype(np.float32))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        inside = (rows @ self.basis.T) @ self.basis
        return rows - inside if self.away else inside


@dataclass(frozen=True, eq=False)
class Clamp:
    """x + (min(max(x . u, minimum), maximum) - x . u) u, with u = v / |v|. `direction` is float32
    [width]; None leaves a side open, equal bounds set the component."""

    direction: np.ndarray
    minimum: float | None = None
    maximum: float | None = None

    def apply(self, rows: np.ndarray) -> np.ndarray:
        u = unit(self.direction)
        along = rows @ u
        bounded = np.clip(along, self.minimum, self.maximum)
        return rows + np.outer(bounded - along, u)


@dataclass(frozen=True, eq=False)
class Replace:
    """Row i of `rows` in place of the i-th selected position, or the only row in place of all.
    `rows` is float32 [positions or 1, width].

    With rows captured from another run this is activation patching (Vig et al., 2020; Meng et al.,
    2022).
    """

    rows: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.rows, rows.shape).copy()


@dataclass(frozen=True, eq=False)
class Swap:
    """x + (b - a)(first - second), with a and b the coefficients of x's projection onto the span of
    the two directions, each divided by its norm. Both are float32 [width]."""

    first: np.ndarray
    second: np.ndarray

    @property
    def reflection(self) -> "Ablate":
        """The same as an ablation: exchanging two unit vectors reflects along their difference."""
        return Ablate(unit(self.first) - unit(self.second), coefficient=2.0)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return self.reflection.apply(rows)


@dataclass(frozen=True, eq=False)
class Zero:
    """0."""

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros_like(rows)


@dataclass(frozen=True, eq=False)
class Mean:
    """m: mean ablation. `mean` is float32 [width]."""

    mean: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.mean, rows.shape).copy()


@dataclass(frozen=True, eq=False)
class Features:
    """x + sum over i of (f'_i - f_i) d_i, with f'_i = g_i f_i + o_i: some features of x change, and
    what they leave unexplained of it stays.

    As features of sparse autoencoders are steered with their error term kept (Marks et al., "Sparse
    Feature Circuits", 2024).
    """

    reads: Projection | None
    """Whose components are features; None where no gain differs from one."""
    columns: np.ndarray
    """Which component each feature is, int64 [n]."""
    directions: np.ndarray
    """d, float32 [n, width]."""
    gains: np.ndarray
    """g, float32 [n]."""
    offsets: np.ndarray
    """o, float32 [n]."""

    def apply(self, rows: np.ndarray) -> np.ndarray:
        change = np.broadcast_to(self.offsets, (len(rows), len(self.offsets)))
        if self.reads is not None:
            features = self.reads.apply(rows)[:, self.columns]
            change = features * (self.gains - 1) + change
        return rows + change @ self.directions


Operation = Add | Ablate | Project | Clamp | Replace | Swap | Zero | Mean | Features


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector divided by its norm, float32."""
    return (vector / _norms(vector)).astype(np.float32)


def relative_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """|x' - x| / |x| of every row, float64 [rows]; a change of a zero row counts as 1."""
    norms = _norms(before)
    change = _norms(after.astype(np.float64) - before)
    return np.where(norms > 0, change / np.where(norms > 0, norms, 1), change > 0)


def _norms(rows: np.ndarray) -> np.ndarray:
    # In float64, where neither the squares nor the sum of any float32 overflow or vanish.
    return np.linalg.norm(rows.astype(np.float64), axis=-1)
