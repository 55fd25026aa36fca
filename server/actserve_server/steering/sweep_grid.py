"""The cells of a sweep: which prompt runs under which variant, at which point of its grid.

Cells are numbered by prompt, then by variant, then by site, positions and coefficient. So the cells
of a prompt follow each other: it is tokenized once, and what none of them changes is in the prefix
cache.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from actserve_server.domain.errors import ActserveError, Reason

MAX_CELLS = 1 << 16
"""Of one call."""
_TOLD_VARIANTS = 4
"""So many show how a number of cells comes about."""


@dataclass(frozen=True, slots=True)
class Axes:
    """How many elements the lists of a variant's grid have; zero where there is none."""

    coefficients: int = 0
    sites: int = 0
    positions: int = 0

    @property
    def points(self) -> int:
        return max(1, self.coefficients) * max(1, self.sites) * max(1, self.positions)

    def __str__(self) -> str:
        lists = (
            (self.coefficients, "coefficients"),
            (self.sites, "sites"),
            (self.positions, "positions"),
        )
        return " x ".join(f"{count} {what}" for count, what in lists if count) or "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Indices into the request's lists; None where the variant's grid has no such list."""

    number: int
    """Among the cells of the sweep."""
    prompt: int
    variant: int
    coefficient: int | None
    site: int | None
    position: int | None


@dataclass(frozen=True)
class Grid:
    """Of a sweep with so many prompts, under variants with these axes."""

    prompts: int
    variants: tuple[Axes, ...]

    def __len__(self) -> int:
        return self.prompts * self._ends[-1]

    def __getitem__(self, number: int) -> Cell:
        prompt, point = divmod(number, self._ends[-1])
        variant = bisect_right(self._ends, point)
        axes = self.variants[variant]
        point -= self._ends[variant - 1] if variant else 0
        point, coefficient = divmod(point, max(1, axes.coefficients))
        site, position = divmod(point, max(1, axes.positions))
        return Cell(
            number=number,
            prompt=prompt,
            variant=variant,
            coefficient=coefficient if axes.coefficients else None,
            site=site if axes.sites else None,
            position=position if axes.positions else None,
        )

    def check(self) -> None:
        """Raises TOO_MANY_CELLS, and shows how many there are and why."""
        if len(self) <= MAX_CELLS:
            return
        told = [f"({axes})" for axes in self.variants[:_TOLD_VARIANTS]]
        more = len(self.variants) - len(told)
        if more:
            rest = sum(axes.points for axes in self.variants[_TOLD_VARIANTS:])
            told.append(f"{rest} of {more} more")
        raise ActserveError(
            Reason.TOO_MANY_CELLS,
            f"{self.prompts} prompts x [{' + '.join(told)}] of the variants are {len(self)} cells, "
            f"but a call may have at most {MAX_CELLS}; make several calls, or shorten a list",
            field=("variants",),
            metadata={"cells": len(self), "limit": MAX_CELLS},
        )

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The points of the variants up to and with each."""
        return tuple(accumulate(axes.points for axes in self.variants))
