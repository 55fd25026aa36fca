"""Qualities: how well scores tell examples of two kinds apart, on the scales that matter where
nearly all that is watched is harmless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.errors import InvalidRequest
from actserve.tensors import Float32Array
from actserve.v1 import monitor_service_pb2 as pb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESAMPLES = 1000
_LOWEST, _HIGHEST = 1e-3, 1e-1
"""Of the false positive rates that the logarithmic AUROC goes over."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Quality(Shown):
    """How well scores tell positive examples from negative ones."""

    positives: int
    """Positive examples."""
    negatives: int
    """Negative examples."""
    auroc: float
    """The area under the receiver operating characteristic (ROC) curve; 0.5 is chance."""
    interval: tuple[float, float]
    """Between these are 95% of the AUROCs of bootstrap resamples of the examples; of their groups,
    if there are any."""
    log_auroc: float
    """The mean true positive rate over false positive rates from 0.001 to 0.1, evenly on a
    logarithmic scale (Anthropic, "Cost-Effective Constitutional Classifiers via Representation
    Re-use", 2025)."""
    recall_at_1_percent: float
    """The share of positive examples above the lowest threshold that at most 1% of the negative
    ones are above; of fewer than 100, none is."""
    recall_at_01_percent: float
    """The same with 0.1% of the negative ones; of fewer than 1000, none is above."""
    positive_scores: Float32Array
    """The scores of positive examples, ascending; of a report of the server at most 4096. Shape
    [scores]."""
    negative_scores: Float32Array
    """Of negative ones. Shape [scores]."""

    def above(self, threshold: float) -> tuple[float, float]:
        """The share of positive and of negative examples that score above a threshold: its recall
        and its false positives."""
        return (
            float(np.mean(self.positive_scores > threshold)) if self.positives else 0.0,
            float(np.mean(self.negative_scores > threshold)) if self.negatives else 0.0,
        )

    def roc(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The ROC curve: false positive rates and true positive rates, from (0, 0) to (1, 1), one
        point for each threshold that tells scores apart. Both have shape [points].

            false_positives, true_positives = report.held_out.roc()
        """
        return roc_curve(self.positive_scores, self.negative_scores)

    def plot_roc(self, ax: Axes | None = None) -> Axes:
        """Draws the ROC curve, with false positives on a logarithmic scale. Needs the extra
        `plot`, and makes a figure of its own without `ax`.

            report.held_out.plot_roc().figure.savefig("roc.svg")
        """
        from actserve._show.monitor_plots import plot_roc

        return plot_roc({"": self}, ax)

    def plot_scores(self, ax: Axes | None = None) -> Axes:
        """Draws how the scores of both kinds are distributed. Needs the extra `plot`."""
        from actserve._show.monitor_plots import plot_scores

        return plot_scores(self, (), ax)

    def to_json(self) -> dict[str, Any]:
        """The numbers; scores are left out."""
        told: dict[str, Any] = plain(self)
        del told["positive_scores"], told["negative_scores"]
        return told

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Quality(AUROC {self.auroc:.3f} [{low:.3f}, {high:.3f}], {self.positives} positive, "
            f"{self.negatives} negative)"
        )


def roc_curve(
    positive: ArrayLike, negative: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates [points] of the scores of both kinds, none of them empty."""
    ups, downs = (np.sort(np.asarray(each, np.float64)) for each in (positive, negative))
    thresholds = np.unique(np.concatenate([ups, downs]))[::-1]
    above = [1 - np.searchsorted(each, thresholds, "right") / len(each) for each in (downs, ups)]
    false, true = (np.concatenate([each, [1.0]]) for each in above)
    return false, true


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The chance that a positive scores above a negative, half of it where they are equal."""
    downs = np.sort(negative)
    below = np.searchsorted(downs, positive, "left") + np.searchsorted(downs, positive, "right")
    return float(below.mean() / (2 * len(downs)))


def recall_at(positive: NDArray[np.float64], negative: NDArray[np.float64], share: float) -> float:
    """The share of positives above the lowest threshold that at most a share of negatives are
    above."""
    allowed = int(share * len(negative) + 1e-9)
    if allowed >= len(negative):
        return 1.0
    threshold = np.sort(negative)[len(negative) - 1 - allowed]
    return float(np.mean(positive > threshold))


def log_auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The mean of `recall_at` over shares from 0.001 to 0.1, evenly on a logarithmic scale; exact,
    as it changes only where one negative more may be above."""
    count = len(negative)
    steps = np.arange(1, int(_HIGHEST * count + 1e-9) + 1) / count
    inside = steps[(steps > _LOWEST) & (steps < _HIGHEST)]
    edges = np.concatenate([[_LOWEST], inside, [_HIGHEST]])
    recalls = [recall_at(positive, negative, float(edge)) for edge in edges[:-1]]
    widths = np.diff(np.log(edges))
    return float(np.sum(np.array(recalls) * widths) / widths.sum())


def measured(
    scores: Sequence[float], positive: Sequence[bool], groups: Sequence[str] | None = None
) -> Quality:
    """How well the scores [examples] tell apart what is `positive` from what is not. `groups` say
    what each example belongs to; one without is its own. Raises `InvalidRequest` unless there are
    both kinds."""
    values, kinds = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    ups, downs = values[kinds], values[~kinds]
    if not len(ups) or not len(downs):
        raise InvalidRequest(
            f"there are {len(ups)} positive and {len(downs)} negative examples; give some of both",
            reason="FIELD_INVALID",
        )
    return Quality(
        positives=len(ups),
        negatives=len(downs),
        auroc=auroc(ups, downs),
        interval=_interval(values, kinds, groups),
        log_auroc=log_auroc(ups, downs),
        recall_at_1_percent=recall_at(ups, downs, 0.01),
        recall_at_01_percent=recall_at(ups, downs, 0.001),
        positive_scores=np.sort(ups).astype(np.float32),
        negative_scores=np.sort(downs).astype(np.float32),
    )


def _interval(
    values: NDArray[np.float64], kinds: NDArray[np.bool_], groups: Sequence[str] | None
) -> tuple[float, float]:
    """Of resamples that lack one kind nothing is known; the same data give the same interval."""
    named = [group or f"\0{index}" for index, group in enumerate(groups or [""] * len(values))]
    _, which = np.unique(named, return_inverse=True)
    members = [np.flatnonzero(which == group) for group in range(int(which.max()) + 1)]
    random, found = np.random.default_rng(0), list[float]()
    for _ in range(_RESAMPLES):
        chosen = random.integers(0, len(members), len(members))
        drawn = np.concatenate([members[each] for each in chosen])
        ups, downs = values[drawn][kinds[drawn]], values[drawn][~kinds[drawn]]
        if len(ups) and len(downs):
            found.append(auroc(ups, downs))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (0.0, 1.0)
    return float(low), float(high)


def quality_from_proto(told: pb.FitQuality) -> Quality:
    """A quality as the contract tells it."""
    return Quality(
        positives=told.positives,
        negatives=told.negatives,
        auroc=told.auroc,
        interval=(told.auroc_low, told.auroc_high),
        log_auroc=told.log_auroc,
        recall_at_1_percent=told.recall_at_1_percent,
        recall_at_01_percent=told.recall_at_01_percent,
        positive_scores=np.array(told.positive_scores, np.float32),
        negative_scores=np.array(told.negative_scores, np.float32),
    )
