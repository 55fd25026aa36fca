"""What a probe is fitted to: rows of labelled examples, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.logistic import ROUNDING
from actserve_server.domain.tensors import ElementType, to_float32

HELD_OUT = 0.25
"""Of the examples."""
SET_ASIDE = 0.25
"""Of the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class FitRows:
    """The rows of one example, in the order of their positions."""

    bits: tuple[np.ndarray, ...]
    """Of each site [tokens, width], as the engine gives them."""
    fitted: np.ndarray
    """Which of the tokens a probe is fitted to, bool [tokens]; at least one."""
    counted: np.ndarray
    """Which of them count for the score; at least one."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of an example before it runs."""

    positive: bool
    group: str = ""
    """What it belongs to; it is its own if empty."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Some examples."""

    rows: Sequence[FitRows]
    is_positive: np.ndarray
    """bool [n]."""
    groups: np.ndarray
    """The number of each one's group, int64 [n]."""
    element_type: ElementType

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, numbers: np.ndarray) -> "Examples":
        """Those of these numbers."""
        return Examples(
            [self.rows[number] for number in numbers],
            self.is_positive[numbers],
            self.groups[numbers],
            self.element_type,
        )

    def counted(self, sites: Sequence[int], index: int) -> list[np.ndarray]:
        """The rows of an example that count for its score, site by site, float32."""
        each = self.rows[index]
        return [to_float32(each.bits[site][each.counted], self.element_type) for site in sites]


class FittedRows(Sequence[np.ndarray]):
    """The rows of each example that a probe is fitted to, those of some sites side by side: float32
    [tokens, width]. They are made when they are asked for, since all at once may be many."""

    def __init__(self, examples: Examples, sites: Sequence[int]) -> None:
        self._examples = examples
        self._sites = sites

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        each = self._examples.rows[index]
        element_type = self._examples.element_type
        return np.concatenate(
            [to_float32(each.bits[site][each.fitted], element_type) for site in self._sites],
            axis=1,
        )

    @cached_property
    def means(self) -> np.ndarray:
        """Of each example, float64 [n, width]."""
        return np.stack([each.mean(axis=0, dtype=np.float64) for each in self])

    @cached_property
    def scale(self) -> "Scale":
        """Of all tokens."""
        return Scale.of(self)


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """What brings columns to unit variance: (x - mean) * factor; float64 [width]."""

    mean: np.ndarray
    deviations: np.ndarray
    largest: np.ndarray
    """The largest absolute value of each column."""

    @staticmethod
    def of(sequences: Sequence[np.ndarray]) -> "Scale":
        """Over all rows of these."""
        width, count = sequences[0].shape[1], sum(map(len, sequences))
        mean = sum((rows.sum(axis=0, dtype=np.float64) for rows in sequences), np.zeros(width))
        mean /= count
        squares, largest = np.zeros(width), np.zeros(width)
        for rows in sequences:
            squares += np.square(rows - mean).sum(axis=0)
            largest = np.maximum(largest, np.abs(rows).max(axis=0))
        return Scale(mean, np.sqrt(squares / count), largest)

    @property
    def factor(self) -> np.ndarray:
        """What columns are multiplied with: zero for one that is the same in all rows."""
        told = self.deviations > ROUNDING * self.largest
        return np.divide(1.0, self.deviations, out=np.zeros_like(self.mean), where=told)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Scaled rows, float32."""
        return ((rows - self.mean) * self.factor).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Numbers of the examples, each in one part, int64 and ascending. Every part has some of both
    kinds, and every group is in one part."""

    train: np.ndarray
    set_aside: np.ndarray
    """To choose by."""
    held_out: np.ndarray
    """To measure by."""
    groups: np.ndarray
    """The number of the group of each example."""


def split(labels: Sequence[Label]) -> Split:
    """A quarter is held out, and a quarter of the rest set aside, of each kind as nearly as groups
    allow. It depends on the labels and groups and their order alone.

    Raises FIELD_INVALID where there are too few groups of a kind for every part to have one.
    """
    groups = group_numbers(labels)
    is_positive = np.array([each.positive for each in labels])
    order = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    everything = np.ones(len(labels), bool)
    held_out = _part(everything, HELD_OUT, 3, order, groups, is_positive)
    set_aside = _part(everything & ~held_out, SET_ASIDE, 2, order, groups, is_positive)
    train, *others = (
        np.flatnonzero(each) for each in (~held_out & ~set_aside, set_aside, held_out)
    )
    return Split(train, others[0], others[1], groups)


def group_numbers(labels: Sequence[Label]) -> np.ndarray:
    """Which group each is of, int64 [n]."""
    known: dict[object, int] = {}
    # The number of an example is no text, so it is never the name of a group.
    return np.array(
        [known.setdefault(each.group or index, len(known)) for index, each in enumerate(labels)]
    )


def _part(
    among: np.ndarray,
    share: float,
    parts: int,
    order: np.ndarray,
    groups: np.ndarray,
    is_positive: np.ndarray,
) -> np.ndarray:
    """Which of the examples `among` make up a part of this share; the first of so many parts that
    are still to be made of them. Groups are taken in order, as long as each brings the number of
    either kind nearer to what is wanted."""
    counts = np.zeros((len(order), 2), np.int64)
    np.add.at(counts, (groups[among], is_positive[among].astype(np.int64)), 1)
    wanted = np.maximum(1, counts.sum(axis=0) * share)
    taken: list[int] = []
    have = np.zeros(2, np.int64)
    for group in order:
        more = have + counts[group]
        if counts[group].any() and np.abs(more - wanted).sum() < np.abs(have - wanted).sum():
            taken.append(group)
            have = more
    for kind in np.flatnonzero(have == 0):  # Its groups are large: the smallest has to do.
        left = [each for each in order if counts[each, kind] and each not in taken]
        taken += sorted(left, key=lambda each: counts[each].sum())[:1]
    chosen = among & np.isin(groups, taken)
    _check_kinds(chosen, among & ~chosen, parts, groups, is_positive)
    return chosen


def _check_kinds(
    chosen: np.ndarray,
    rest: np.ndarray,
    parts: int,
    groups: np.ndarray,
    is_positive: np.ndarray,
) -> None:
    for kind, of_kind in (("positive", is_positive), ("negative", ~is_positive)):
        left = len(np.unique(groups[rest & of_kind]))
        if not (chosen & of_kind).any() or left < parts - 1:
            count = len(np.unique(groups[of_kind]))
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the {kind} examples are of {count} groups, and a group is never split: too few "
                "for some to fit to, some to choose a site by and some to measure with; send "
                f"{kind} examples of more groups",
                field=("examples",),
                metadata={"groups": count, "limit": 3},
            )
