"""Sweeps: many prompts under many interventions, and the table of what came of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described, finite, number_of, unicode
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.errors import ActserveError, InvalidRequest
from actserve.interventions import Ablate, Add, Intervention
from actserve.kept import is_kept_name
from actserve.positions import Positions, check_positions
from actserve.results import InterventionReport, Usage
from actserve.sites import SiteLike, parse_sites
from actserve.steering_vectors import Intervene, SteeringVector
from actserve.stored_vectors import Stored, StoredVector

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MAX_KEY_BYTES = 256


@dataclass(frozen=True, eq=False)
class Variant:
    """Interventions, and a grid of what to try of them: a point for every combination of an element
    of each list that is not empty.

    - `intervene`: interventions, of which None is none; or a vector to add, by the name of a stored
      one or as an array, at `sites`; without them a stored one is added at all of its own at once.
    - `coefficients`: of every `Add` and `Ablate`, whose own is then left out.
    - `sites`: of every intervention, one at a time, in the place of its own.
    - `positions`: a list of positions of every intervention, in the place of its own.
    - `adapter`: the LoRA adapter that its cells run with.

    Checks what it is given when it is made, and raises `InvalidRequest`.

        Variant("joy", coefficients=[-2, -1, 0, 1, 2], sites="resid_post.5:20:5")
        Variant(Ablate("resid_post.*", "refusal"))
    """

    intervene: Any = None
    coefficients: Sequence[float] = ()
    sites: SiteLike | Iterable[SiteLike] = ()
    positions: Sequence[Positions] = ()
    adapter: str | None = None

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        given: Any = self.coefficients
        if isinstance(given, str) or not isinstance(given, Iterable):
            given = [given]
        numbers = tuple(finite(each, "coefficient") for each in given)
        where: Any = self.positions
        if isinstance(where, str) or not isinstance(where, list | tuple):
            where = [where]
        for each in where:
            check_positions(each)
        intervene = _interventions(self.intervene, sites)
        _check_coefficients(intervene, numbers)
        for name, value in {
            "intervene": intervene,
            "coefficients": numbers,
            "sites": sites,
            "positions": tuple(where),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def named(self) -> Stored | None:
        """The stored vector that is to be added at its own sites, which only the server knows."""
        return self.intervene if isinstance(self.intervene, Stored) else None

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return any((self.intervene, self.coefficients, self.sites, self.positions))


def _interventions(intervene: Any, sites: tuple[Any, ...]) -> tuple[Intervention, ...] | Stored:
    if intervene is None:
        return ()
    if isinstance(intervene, list | tuple) and all(
        isinstance(each, Intervene) for each in intervene
    ):
        return tuple(each for one in intervene for each in _steered(one, sites))
    if isinstance(intervene, str) and not is_kept_name(intervene):
        intervene = Stored(intervene)
    if isinstance(intervene, Stored) and not sites:  # The server knows its own.
        return intervene
    return _steered(intervene, sites)


def _steered(intervene: Any, sites: tuple[Any, ...]) -> tuple[Intervention, ...]:
    if isinstance(intervene, Intervention):
        return (intervene,)
    if isinstance(intervene, SteeringVector | StoredVector) and not sites:
        return (intervene.add(),)
    if not sites:
        raise InvalidRequest(
            f"{described(intervene)} is a vector without a site; say it, as in "
            "sites='resid_post.12', or give an intervention",
            reason="FIELD_REQUIRED",
            path=("sites",),
        )
    return (Add(sites, intervene),)


def _check_coefficients(
    intervene: tuple[Intervention, ...] | Stored, coefficients: tuple[float, ...]
) -> None:
    if not coefficients or isinstance(intervene, Stored):
        return
    scaled = [each for each in intervene if isinstance(each, Add | Ablate)]
    if not scaled:
        raise InvalidRequest(
            f"there are {len(coefficients)} coefficients and no Add or Ablate that has one; leave "
            "them out",
            reason="FIELD_INVALID",
            path=("coefficients",),
        )
    if own := next((each.coefficient for each in scaled if each.coefficient != 1.0), None):
        raise InvalidRequest(
            f"an intervention has the coefficient {own:g}, and the grid has others; leave it out",
            reason="FIELD_INVALID",
            path=("coefficients",),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SweepCell:
    """What came of one prompt under one variant, at one point of its grid."""

    prompt: str
    """The key of the prompt; its number as text where it has none."""
    prompt_index: int
    """Which one of the prompts."""
    prompt_text: str
    """The prompt, or the turns of a conversation line by line, cut to 1,000 characters; empty of
    token ids."""
    variant: str
    """The key of the variant; its number as text where it has none."""
    variant_index: int
    """Which one of the variants."""
    coefficient: float | None
    """None where the variant has no list of them, as the two below."""
    site: str | None
    """The canonical name of the site."""
    positions: str | None
    """The positions as they were written."""
    error: ActserveError | None
    """Why it failed; then nothing below is known. None if it was served."""
    text: str
    """What was generated; empty if nothing was to be."""
    finish_reason: str
    """Why it ended; empty if nothing was generated."""
    answers: Mapping[str, float]
    """The natural log of the probability of each answer, by name."""
    scores: Mapping[str, float]
    """What each probe says as of the last token, by name."""
    perplexity: float | None
    """Of the generated text under the model as it is; None if it was not asked for."""
    repetition: float | None
    """The part of the generated runs of 4 tokens that came before; None of fewer than 5 tokens."""
    interventions: tuple[InterventionReport, ...]
    """What each intervention did, over all runs of the cell."""
    stored: bool
    """Whether an earlier call ran it."""

    @property
    def relative_change(self) -> float | None:
        """The mean size of the change that interventions made to a row, relative to it; None where
        they computed none."""
        made = [
            (each.mean_relative_change, each.rows - each.reused_rows)
            for each in self.interventions
            if each.mean_relative_change is not None
        ]
        rows = sum(count for _, count in made)
        return sum(mean * count for mean, count in made) / rows if rows else None

    @property
    def dose_factor(self) -> float | None:
        """What coefficients and bounds were multiplied by where the server limits the dose: of
        several interventions the least, and 1 where it left them as they are; None where there are
        none."""
        factors = [each.dose_factor for each in self.interventions]
        return min((1.0 if each is None else each for each in factors), default=None)


_Read: TypeAlias = "Callable[[SweepCell], float | None]"

Value: TypeAlias = "str | Callable[[SweepCell], float | None] | None"
"""A number of each cell: the name of an answer or a score, "perplexity", "repetition" or
"relative_change"; one of these less another, as "good - bad"; or what a function makes of a cell.
The first that was asked for when None."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """How a number depends on the coefficient: its mean over prompts, with what that mean may be
    off by. All arrays have shape [coefficients]."""

    variant: str
    """The variant."""
    site: str | None
    """The site; None where the variant has no list of them."""
    positions: str | None
    """The positions; None where the variant has no list of them."""
    coefficients: NDArray[np.float64]
    """Ascending; NaN, once, where the variant has no list of them."""
    means: NDArray[np.float64]
    """The mean over prompts; NaN where no prompt has a number."""
    errors: NDArray[np.float64]
    """The standard error of the mean; NaN of fewer than two prompts."""
    counts: NDArray[np.int64]
    """The prompts that have a number."""

    @property
    def label(self) -> str:
        """What it is of, in a few words."""
        return ", ".join(filter(None, (self.variant, self.site, self.positions)))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Sweep(Shown):
    """The table of a sweep: a cell for every prompt, variant and point of its grid."""

    cells: tuple[SweepCell, ...]
    """All cells, by variant and point of its grid, then by prompt."""
    answers: tuple[str, ...]
    """The names of the answers."""
    scores: tuple[str, ...]
    """The names of the scores."""
    usage: Usage | None
    """What the calls that ended well consumed."""
    request_id: str
    """The server's id for the last call, also in its logs."""

    @property
    def failed(self) -> tuple[SweepCell, ...]:
        """The cells that failed; no mean counts them."""
        return tuple(cell for cell in self.cells if cell.error)

    @property
    def limited(self) -> tuple[SweepCell, ...]:
        """The cells that ran with less than their coefficient, since the server limits the dose."""
        return tuple(cell for cell in self.cells if (cell.dose_factor or 1.0) < 1.0)

    def value(self, value: Value = None) -> tuple[str, NDArray[np.float64]]:
        """The name of a number, and the number of each cell, NaN where it has none. Shape [cells].
        Raises `ValueError` for a name that is none."""
        if callable(value):
            read, name = value, getattr(value, "__name__", "value")
            name = "value" if name == "<lambda>" else name
        else:
            name, read = self._named(value)
        numbers = (None if cell.error else read(cell) for cell in self.cells)
        return name, np.array([np.nan if each is None else each for each in numbers], np.float64)

    def curves(self, value: Value = None) -> list[Curve]:
        """How a number depends on the coefficient, for each variant, site and positions.

        sweep.curves("good")[0].means  # by coefficient
        """
        _, numbers = self.value(value)
        points: dict[Any, dict[float, list[float]]] = {}
        for cell, number in zip(self.cells, numbers.tolist(), strict=True):
            curve = points.setdefault((cell.variant_index, cell.site, cell.positions), {})
            at = np.nan if cell.coefficient is None else cell.coefficient
            # NaN is not equal to itself, but np.nan is the same object.
            curve.setdefault(at, []).append(number)
        variants = {cell.variant_index: cell.variant for cell in self.cells}
        return [
            _curve(variants[index], site, positions, curve)
            for (index, site, positions), curve in points.items()
        ]

    def plot(self, value: Value = None, ax: Axes | None = None) -> Axes:
        """Draws a number by coefficient: the mean over prompts of each variant and site, in a band
        of one standard error, and what has no coefficients as a dashed line. Needs the extra
        `plot`, and makes a figure of its own without `ax`.

            sweep.plot("good").figure.savefig("joy.svg")
            sweep.plot("good - bad")
        """
        from actserve._show.sweep_plots import plot_curves

        return plot_curves(self, value, ax)

    def plot_heat(
        self, value: Value = None, ax: Axes | None = None, *, variant: str | None = None
    ) -> Axes:
        """Draws the mean of a number over prompts, by site and coefficient, of the variant that has
        both, or of one of them. Needs the extra `plot`. Raises `ValueError` where there is none.

            sweep.plot_heat("good").figure.savefig("layers.png")
        """
        from actserve._show.sweep_plots import plot_heat

        return plot_heat(self, value, ax, variant)

    def print_plot(self, value: Value = None) -> None:
        """Prints the curves that `plot` draws, for a terminal. Needs the extra `plot`.

        sweep.print_plot("good")
        """
        from actserve._show.sweep_plots import printed_curves

        columns, lines = get_terminal_size()
        print(printed_curves(self, value, columns, min(lines - 2, 30)))  # noqa: T201

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row for each cell: `prompt`, `prompt_text`, `variant`, `coefficient`,
        `dose_factor`, `site`, `positions`, `text`, `answers.<name>`, `scores.<name>` and so on,
        with NaN for a number that is not there and `error` as text. Needs the extra `pandas`.

            frame = sweep.to_pandas()
            frame.groupby(["site", "coefficient"])["answers.good"].agg(["mean", "sem"])
        """
        from actserve._sweep_tables import frame

        return frame(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes what `to_pandas` has into a Parquet file, which pandas reads. Needs the extra
        `files`. Raises `ValueError` for another suffix than `.parquet`."""
        from actserve._sweep_tables import write

        write(self, path)

    def to_json(self) -> dict[str, Any]:
        """The cells as plain lists, numbers and strings.

        json.dumps(sweep.to_json())
        """
        from actserve._sweep_tables import records

        found: dict[str, Any] = plain(
            {"cells": records(self), "request_id": self.request_id, "usage": self.usage}
        )
        return found

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        counts = [
            number_of(len(self), "cell"),
            number_of(len({cell.prompt_index for cell in self.cells}), "prompt"),
            number_of(len({cell.variant_index for cell in self.cells}), "variant"),
        ]
        if self.failed:
            counts.append(f"{len(self.failed)} failed")
        return f"Sweep({', '.join(counts)})"

    def _named(self, value: str | None) -> tuple[str, _Read]:
        there: dict[str, _Read] = {
            **{name: _of_answer(name) for name in self.answers},
            **{name: _of_score(name) for name in self.scores if name not in self.answers},
        }
        for name, read in _OF_EVERY_CELL.items():
            if any(read(cell) is not None for cell in self.cells if not cell.error):
                there.setdefault(name, read)
        if value is None:
            value = next(iter(there), None)
        if value is None:
            raise ValueError("no cell has a number; the sweep asked for none, or all failed")
        reads = [there[name] for name in value_names(value, there)]
        return value, reads[0] if len(reads) == 1 else _difference(*reads)


def value_names(value: str, there: Collection[str]) -> tuple[str, ...]:
    """The one name that a number is made of, or the two that it is the difference of. Raises
    `ValueError` unless they are there."""
    one, _, other = value.partition(" - ")
    if value in there:
        return (value,)
    if one in there and other in there:
        return one, other
    raise ValueError(f"{value!r} is no number of this sweep; there are {', '.join(there)}")


def _of_answer(name: str) -> _Read:
    return lambda cell: cell.answers.get(name)


def _difference(one: _Read, other: _Read) -> _Read:
    def read(cell: SweepCell) -> float | None:
        numbers = one(cell), other(cell)
        return None if numbers[0] is None or numbers[1] is None else numbers[0] - numbers[1]

    return read


def _of_score(name: str) -> _Read:
    return lambda cell: cell.scores.get(name)


_OF_EVERY_CELL: Mapping[str, _Read] = {
    "perplexity": lambda cell: cell.perplexity,
    "repetition": lambda cell: cell.repetition,
    "relative_change": lambda cell: cell.relative_change,
}


def _curve(
    variant: str, site: str | None, positions: str | None, points: dict[float, list[float]]
) -> Curve:
    coefficients = sorted(points)
    means, errors, counts = [], [], []
    for at in coefficients:
        found = np.array(points[at], np.float64)
        found = found[np.isfinite(found)]
        counts.append(len(found))
        means.append(found.mean() if len(found) else np.nan)
        errors.append(found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.nan)
    return Curve(
        variant,
        site,
        positions,
        np.array(coefficients, np.float64),
        np.array(means, np.float64),
        np.array(errors, np.float64),
        np.array(counts, np.int64),
    )


def checked_key(key: object, what: str) -> str:
    """The key of a prompt or a variant. Raises `InvalidRequest`."""
    if not isinstance(key, str) or not 0 < len(unicode(key, what).encode()) <= _MAX_KEY_BYTES:
        raise InvalidRequest(
            f"{described(key)} is not {what}; use a text of 1 to {_MAX_KEY_BYTES} bytes",
            reason="FIELD_INVALID",
        )
    return key
