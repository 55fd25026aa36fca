"""Features of prompts: what a dictionary makes of the rows of each token.

A feature is active at a token where it is above zero. Of attention sinks, position 0 above all,
features say little: their rows are many times as long as others, and so are their features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.studies import Study
from actserve.tensors import Float32Array

if TYPE_CHECKING:
    import pandas as pd

FeatureOrder: TypeAlias = Literal["sum", "maximum", "count"]
"""What the features of a prompt are ordered by."""


@dataclass(frozen=True, slots=True)
class ActiveFeature:
    """A feature at one token."""

    index: int
    value: float
    label: str
    """What it stands for, as somebody said; empty where nobody did."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FeatureStudy(Study):
    """What all of them have."""

    dictionary: str
    """The id of the dictionary."""
    site: str
    """The canonical name of the site whose rows were read."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What features stand for, as somebody said, by index: of those named here that have a label.
    """


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TopFeatures(FeatureStudy):
    """The largest features of each token. Iteration yields each position with its active ones."""

    positions: NDArray[np.int64]
    """The positions, ascending. Shape [positions]."""
    indices: NDArray[np.int64]
    """The features, largest first. Shape [positions, k]."""
    values: Float32Array
    """What they are; zero where fewer are active. Shape [positions, k]."""

    def __iter__(self) -> Iterator[tuple[int, tuple[ActiveFeature, ...]]]:
        for position in self.positions.tolist():
            yield position, self.at(position)

    def at(self, position: int) -> tuple[ActiveFeature, ...]:
        """The features that are active at a position, largest first; -1 is the last that was read.
        Raises `KeyError` for one that was not."""
        (found,) = np.nonzero(self.positions == position)
        if position < 0 and -position <= len(self.positions):
            found = np.array([len(self.positions) + position])
        if not len(found):
            raise KeyError(f"position {position} was not read; read: {self.positions.tolist()}")
        row = int(found[0])
        return tuple(
            ActiveFeature(index, value, self.labels.get(index, ""))
            for index, value in zip(
                self.indices[row].tolist(), self.values[row].tolist(), strict=True
            )
            if value > 0
        )

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each feature that is active at a token: `value` and `label`
        by `position`, `token` and `feature`. Needs the extra `pandas`.

            top.to_pandas().xs(-1 + len(top.tokens), level="position")
        """
        from actserve._study_frames import features_frame

        return features_frame(self)

    def _described(self) -> str:
        positions, k = self.indices.shape
        return f"{self.dictionary} at {self.site}, {positions} positions, top {k}"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ChosenFeatures(FeatureStudy):
    """Some features at each token."""

    positions: NDArray[np.int64]
    """The positions, ascending. Shape [positions]."""
    features: tuple[int, ...]
    """The features, in the order asked for."""
    values: Float32Array
    """What they are; zero where they are not active. Shape [positions, features]."""

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each token and a column for each feature. Needs the extra
        `pandas`."""
        from actserve._study_frames import chosen_frame

        return chosen_frame(self)

    def _described(self) -> str:
        return f"{self.dictionary} at {self.site}, {len(self.features)} features"


@dataclass(frozen=True, slots=True)
class FeatureTotal:
    """What a feature comes to over a prompt."""

    index: int
    sum: float
    maximum: float
    count: int
    """Tokens at which it is active."""
    position: int
    """Where it is at its maximum, the first such."""
    label: str


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FeatureTotals(FeatureStudy):
    """Sums, maxima and counts over the tokens of a prompt, of the features that are active at
    any."""

    positions: NDArray[np.int64]
    """The positions that were read, ascending. Shape [positions]."""
    indices: NDArray[np.int64]
    """The features that are active, ascending; all others are zero. Shape [active]."""
    sums: Float32Array
    """Of the feature, over tokens. Shape [active]."""
    maxima: Float32Array
    """The largest it is at any token. Shape [active]."""
    counts: NDArray[np.int64]
    """Tokens at which it is active. Shape [active]."""
    peaks: NDArray[np.int64]
    """The position where it is largest, the first such. Shape [active]."""

    def top(self, k: int = 10, by: FeatureOrder = "sum") -> list[FeatureTotal]:
        """The first `k` features by their sum, maximum or count, largest first; of equal ones the
        lower index. Raises `InvalidRequest` for another order."""
        orders: dict[str, NDArray[Any]] = {
            "sum": self.sums,
            "maximum": self.maxima,
            "count": self.counts,
        }
        if by not in orders:
            raise InvalidRequest(
                f"features cannot be ordered by {described(by)}; use one of {', '.join(orders)}",
                reason="FIELD_INVALID",
                path=("by",),
            )
        order = np.argsort(-orders[by], kind="stable")[:k]
        return [
            FeatureTotal(
                index=int(self.indices[at]),
                sum=float(self.sums[at]),
                maximum=float(self.maxima[at]),
                count=int(self.counts[at]),
                position=int(self.peaks[at]),
                label=self.labels.get(int(self.indices[at]), ""),
            )
            for at in order.tolist()
        ]

    def _described(self) -> str:
        return f"{self.dictionary} at {self.site}, {len(self.indices)} active features"


@dataclass(frozen=True, slots=True, eq=False)
class LogitEffect:
    """Which tokens a feature makes likelier by itself: its direction through the final norm and the
    unembedding, with no layer between (the direct effect; Elhage et al., "A Mathematical Framework
    for Transformer Circuits", 2021).

    The effects are logits for one unit of the feature, as at a row whose elements have a mean
    square of one; at other rows they are smaller or larger, all by one factor.
    """

    dictionary: str
    feature: int
    label: str
    top_ids: NDArray[np.int64]
    """The tokens that it raises most, most first. Shape [k]."""
    top_tokens: tuple[str, ...]
    top_effects: Float32Array
    bottom_ids: NDArray[np.int64]
    """The tokens that it lowers most, most first. Shape [k]."""
    bottom_tokens: tuple[str, ...]
    bottom_effects: Float32Array

    def __repr__(self) -> str:
        raised = ", ".join(map(repr, self.top_tokens[:5]))
        return f"LogitEffect({self.dictionary!r}, {self.feature}: raises {raised})"
