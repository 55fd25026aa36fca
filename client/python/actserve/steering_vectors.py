"""Steering vectors as values: at a site, with arithmetic, and with a note of where they come from.

The difference of two mean rows is the usual one (Rimsky et al., "Steering Llama 2 via Contrastive
Activation Addition", 2023); the arithmetic is that of Turner et al., "Activation Addition", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actserve._archives import read_archive, write_archive
from actserve._checks import described, finite, unicode
from actserve._show.shown import Shown
from actserve.errors import InvalidRequest
from actserve.positions import Positions
from actserve.sites import Site, SiteLike
from actserve.tensors import Float32Array, as_vector, check_nonzero

if TYPE_CHECKING:
    from actserve.interventions import Add
    from actserve.when import When

_KIND = "steering vector"


class Intervene:
    """What steers: an `Intervention`, or a `SteeringVector` or `StoredVector`, which is added at
    its sites as its `add()` is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SteeringVector(Intervene, Shown):
    """A vector of a site: what `intervene=` adds, and what stands wherever an array may.

    - `site`: where its rows come from. Vectors of two sites cannot be added.
    - `values`: float32 [width], copied and read-only; see `Vector` for what is taken.
    - `provenance`: where it comes from, for people to read. Arithmetic keeps and combines it.

    Raises `InvalidRequest`, as its arithmetic does.

        joy = means["liked"] - means["hated"]  # a SteeringVector
        joy.provenance  # "mean of 'liked' less mean of 'hated'"
        client.generate(prompt, intervene=4 * joy)
        client.generate(prompt, intervene=joy.add(0.1, relative=True, positions="generated"))
        joy.save("joy.safetensors")
    """

    site: Site
    values: Float32Array
    provenance: str = ""

    def __init__(self, site: SiteLike, values: ArrayLike, provenance: str = "") -> None:
        if not isinstance(provenance, str):
            raise InvalidRequest(
                f"the provenance is {described(provenance)}; give a text", reason="FIELD_INVALID"
            )
        object.__setattr__(self, "site", Site.parse(site))
        object.__setattr__(self, "values", as_vector(values, "values"))
        object.__setattr__(self, "provenance", unicode(provenance, "the provenance"))

    def add(
        self,
        coefficient: float = 1.0,
        *,
        positions: Positions = "all",
        relative: bool = False,
        when: When | None = None,
    ) -> Add:
        """The intervention that adds it at its site, as often as `coefficient` says; `positions`,
        `relative` and `when` are those of `Add`."""
        from actserve.interventions import Add  # Which takes steering vectors.

        return Add(self.site, self, coefficient, positions=positions, relative=relative, when=when)

    @property
    def norm(self) -> float:
        """The L2 norm."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def normalized(self) -> SteeringVector:
        """The vector of norm one that points the same way. A zero vector has none."""
        check_nonzero(self.values, "the steering vector")
        return self._with(self.values.astype(np.float64) / self.norm, f"{self._term()}, normalized")

    def cosine(self, other: SteeringVector | ArrayLike) -> float:
        """The cosine of the angle to another vector of this width, of whatever site."""
        values = as_vector(other, "the other vector")
        if values.shape != self.shape:
            raise InvalidRequest(
                f"a vector {self.shape[0]} wide has no angle to one {values.shape[0]} wide; both "
                "have the width of a site",
                reason="TENSOR_WIDTH_MISMATCH",
            )
        one, two = (
            check_nonzero(each, name).astype(np.float64)
            for each, name in ((self.values, "the steering vector"), (values, "the other vector"))
        )
        return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))

    @property
    def shape(self) -> tuple[int, ...]:
        """[width]."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if dtype is None or np.dtype(dtype) == np.float32:
            return self.values.copy() if copy else self.values
        return self.values.astype(dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        # A number of numpy's times a vector stays a vector; all else works on its values.
        if ufunc is np.multiply and method == "__call__" and len(inputs) == 2 and not options:
            factor = next((each for each in inputs if each is not self), None)
            if (number := _number(factor)) is not None:
                return self * number
        values = (each.values if isinstance(each, SteeringVector) else each for each in inputs)
        return getattr(ufunc, method)(*values, **options)

    def __add__(self, other: object) -> SteeringVector:
        return self._combined(other, 1, "plus")

    def __sub__(self, other: object) -> SteeringVector:
        return self._combined(other, -1, "less")

    def __neg__(self) -> SteeringVector:
        return self._with(-self.values, f"minus {self._term()}")

    def __mul__(self, factor: SupportsFloat) -> SteeringVector:
        if (number := _number(factor)) is None:
            return NotImplemented
        return self._with(
            self.values.astype(np.float64) * finite(number, "factor"),
            f"{number:g} times {self._term()}",
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: SupportsFloat) -> SteeringVector:
        if (number := _number(divisor)) is None:
            return NotImplemented
        if not finite(number, "divisor"):
            raise InvalidRequest(
                "a steering vector cannot be divided by zero", reason="FIELD_INVALID"
            )
        return self._with(
            self.values.astype(np.float64) / number, f"{self._term()} divided by {number:g}"
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a file that `load` reads, by its suffix `.safetensors` or `.npz`: the array
        `values`, and the site and provenance beside it."""
        description = {"site": str(self.site), "provenance": self.provenance}
        write_archive(path, _KIND, {"values": self.values}, description)

    @staticmethod
    def load(path: str | PathLike[str]) -> SteeringVector:
        """The steering vector that `save` wrote. Raises `ValueError` for any other file."""
        arrays, description = read_archive(path, _KIND, lambda _: ["values"])
        try:
            return SteeringVector(
                description["site"], arrays["values"], description.get("provenance", "")
            )
        # Where JSON has one thing in the place of another, almost anything is raised.
        except Exception as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def __repr__(self) -> str:
        note = f", {self.provenance!r}" if self.provenance else ""
        return f"SteeringVector({str(self.site)!r}, [{len(self)}] of norm {self.norm:.4g}{note})"

    def _combined(self, other: object, sign: int, word: str) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        if other.site != self.site:
            raise InvalidRequest(
                f"a vector of {self.site} and one of {other.site} do not add up; use two of one "
                "site, or their `values` if that is meant",
                reason="SITE_INVALID",
            )
        if other.shape != self.shape:
            raise InvalidRequest(
                f"vectors {len(self)} and {len(other)} wide do not add up; both have the width of "
                "the site",
                reason="TENSOR_WIDTH_MISMATCH",
            )
        # What is taken away in brackets, and what it is added to as it is.
        return self._with(
            self.values + sign * other.values,
            f"{self.provenance or _UNKNOWN} {word} {other._term()}",
            known=bool(self.provenance or other.provenance),
        )

    def _term(self) -> str:
        """The provenance, in brackets if it has several words that may be read another way."""
        several = any(word in self.provenance for word in _OPERATIONS)
        return f"({self.provenance})" if several else self.provenance or _UNKNOWN

    def _with(
        self, values: ArrayLike, provenance: str, known: bool | None = None
    ) -> SteeringVector:
        # Nothing is made up of a vector that says nothing.
        known = bool(self.provenance) if known is None else known
        return SteeringVector(self.site, values, provenance if known else "")


_UNKNOWN = "a vector"
_OPERATIONS = (" plus ", " less ", " times ", " divided by ", "minus ", ", normalized")


def _number(value: Any) -> float | None:
    """A number, if it is one; an array without axes is."""
    axes = getattr(value, "ndim", 0)
    return float(value) if isinstance(value, SupportsFloat) and not axes else None
