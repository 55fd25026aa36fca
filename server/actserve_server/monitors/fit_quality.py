"""How well scores tell examples apart, on the scale that matters: where few harmless texts raise an
alert."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.roc import auroc

RESAMPLES = 1000
"""Of the bootstrap."""
INTERVAL = 0.025, 0.975
"""The parts of the resamples between which 95% of them are."""
LOG_RANGE = 1e-3, 1e-1
"""False positive rates that `log_auroc` looks at."""
MAX_SCORES = 4096
"""Of a kind that are told."""
_AT_ONCE = 1 << 22
"""Numbers that a block of resamples takes."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Quality:
    """As FitQuality of the contract says it. Scores are float32, ascending."""

    positives: int
    negatives: int
    auroc: float
    auroc_low: float
    auroc_high: float
    log_auroc: float
    recall_at_1_percent: float
    recall_at_01_percent: float
    positive_scores: np.ndarray
    negative_scores: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores of some examples, float64 [n], whether each is positive, bool [n], and the number
    of its group, int64 [n]."""

    scores: np.ndarray
    is_positive: np.ndarray
    groups: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        return self.scores[self.is_positive]

    @property
    def negative(self) -> np.ndarray:
        return self.scores[~self.is_positive]


def quality(scored: Scored) -> Quality:
    """Of examples of both kinds. Depends on them and their order alone."""
    positive, negative = scored.positive, scored.negative
    low, high = bootstrap(scored)
    return Quality(
        positives=len(positive),
        negatives=len(negative),
        auroc=auroc(positive, negative),
        auroc_low=low,
        auroc_high=high,
        log_auroc=log_auroc(positive, negative),
        recall_at_1_percent=recall(positive, negative, 0.01),
        recall_at_01_percent=recall(positive, negative, 0.001),
        positive_scores=_evenly(positive),
        negative_scores=_evenly(negative),
    )


def over_shuffles(every: Sequence[Scored]) -> Quality:
    """Of the same examples, scored by fits to labels that were shuffled in several ways: the means
    over the shuffles. 95% of the shuffles have their area between the ends that are told, and the
    scores are those of the first."""
    first = every[0]
    areas = [auroc(each.positive, each.negative) for each in every]
    low, high = np.quantile(areas, INTERVAL)
    return Quality(
        positives=len(first.positive),
        negatives=len(first.negative),
        auroc=float(np.mean(areas)),
        auroc_low=float(low),
        auroc_high=float(high),
        log_auroc=float(np.mean([log_auroc(each.positive, each.negative) for each in every])),
        recall_at_1_percent=float(
            np.mean([recall(each.positive, each.negative, 0.01) for each in every])
        ),
        recall_at_01_percent=float(
            np.mean([recall(each.positive, each.negative, 0.001) for each in every])
        ),
        positive_scores=_evenly(first.positive),
        negative_scores=_evenly(first.negative),
    )


def threshold(negative: np.ndarray, false_positives: float) -> float:
    """The lowest threshold that at most this share of the scores is above, as a float32 holds it:
    one of the scores, or the next number above."""
    found = np.sort(negative)[::-1][_allowed(len(negative), false_positives)]
    rounded = np.float32(found)
    # Rounded down, it would have the score itself above it.
    return float(rounded if rounded >= found else np.nextafter(rounded, np.float32(np.inf)))


def recall(positive: np.ndarray, negative: np.ndarray, false_positives: float) -> float:
    """The share of the positive scores above the lowest threshold that at most this share of the
    negative ones is above."""
    allowed = _allowed(len(negative), false_positives)
    return float((positive > np.sort(negative)[::-1][allowed]).mean())


def log_auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The mean of `recall` over false positive rates in `LOG_RANGE`, evenly on a logarithmic scale;
    exact, since it changes only where one more negative score is allowed above.

    Anthropic, "Cost-Effective Constitutional Classifiers via Representation Re-use", 2025.
    """
    count = len(negative)
    first, last = LOG_RANGE
    allowed = np.arange(_allowed(count, last) + 1)
    starts = np.maximum(allowed / count, first)
    ends = np.clip((allowed + 1) / count, first, last)
    descending = np.sort(negative)[::-1][allowed]
    above = len(positive) - np.searchsorted(np.sort(positive), descending, "right")
    lengths = np.maximum(np.log(ends) - np.log(starts), 0)
    return float((above / len(positive)) @ lengths / np.log(last / first))


def bootstrap(scored: Scored) -> tuple[float, float]:
    """Between which 95% of resamples of the groups, drawn with replacement, have their area. Those
    that hold but one kind tell nothing, and are left out. (Efron, "Bootstrap methods", 1979.)"""
    rng = np.random.default_rng(0)
    _, groups = np.unique(scored.groups, return_inverse=True)
    count = int(groups.max()) + 1
    positive, negative = scored.positive, scored.negative
    # Which of each pair is above, ties counted half: an area is a weighted mean of these.
    order = np.argsort(negative, kind="stable")
    ordered = negative[order]
    above = _above(positive, ordered)
    areas: list[np.ndarray] = []
    block = max(1, _AT_ONCE // max(count, len(groups)))
    for start in range(0, RESAMPLES, block):
        many = min(block, RESAMPLES - start)
        drawn = rng.integers(count, size=(many, count))
        times = np.stack([np.bincount(each, minlength=count) for each in drawn])[:, groups]
        of_positive = times[:, scored.is_positive]
        of_negative = times[:, ~scored.is_positive][:, order]
        pairs = of_positive.sum(axis=1) * of_negative.sum(axis=1)
        # Of each positive one, the weight of the negative ones below it, and half of its equals.
        sums = np.cumsum(np.pad(of_negative, ((0, 0), (1, 0))), axis=1)
        won = (sums[:, above[0]] + sums[:, above[1]]) / 2
        areas.append(np.einsum("rp,rp->r", of_positive, won)[pairs > 0] / pairs[pairs > 0])
    low, high = np.quantile(np.concatenate(areas), INTERVAL)
    return float(low), float(high)


def _above(positive: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the ordered scores are below each, and how many are not above."""
    return (
        np.searchsorted(ordered, positive, "left"),
        np.searchsorted(ordered, positive, "right"),
    )


def _allowed(count: int, share: float) -> int:
    """How many of so many may be above a threshold."""
    # A share of float32, such as 0.1, is not to lose one of ten to rounding.
    return min(int(count * share * (1 + 1e-6)), count - 1)


def _evenly(scores: np.ndarray) -> np.ndarray:
    """At most `MAX_SCORES` of them, ascending."""
    ordered = np.sort(scores).astype(np.float32)
    if len(ordered) <= MAX_SCORES:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, MAX_SCORES).round().astype(np.int64)]
