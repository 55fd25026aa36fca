"""Scores of sequences are what the contract's formulas say, however their numbers arrive."""

from collections.abc import Sequence

import numpy as np
import pytest

from actserve_server.domain.aggregators import Aggregator, Ema, RollingMean
from actserve_server.domain.reductions import Reduction

NUMBERS = np.random.default_rng(0).standard_normal(300).astype(np.float32)
AGGREGATORS = [
    Aggregator(smoothing, reduction)
    for smoothing in (None, Ema(0.3), Ema(1.0), RollingMean(1), RollingMean(7), RollingMean(1024))
    for reduction in Reduction
]


def by_formula(aggregator: Aggregator, numbers: Sequence[float]) -> float:
    match aggregator.smoothing:
        case None:
            smoothed = list(numbers)
        case Ema(weight):
            smoothed = [numbers[0]]
            for number in numbers[1:]:
                smoothed.append(weight * number + (1 - weight) * smoothed[-1])
        case RollingMean(tokens):
            smoothed = [
                sum(numbers[max(0, end - tokens) : end]) / min(tokens, end)
                for end in range(1, len(numbers) + 1)
            ]
    reduce = {Reduction.LAST: lambda x: x[-1], Reduction.MAX: max, Reduction.MEAN: np.mean}
    return float(reduce[aggregator.reduction](smoothed))


def score(aggregator: Aggregator, *blocks: np.ndarray) -> float | None:
    scoring = aggregator.start()
    for block in blocks:
        scoring.add(block)
    return scoring.score


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
def test_a_score_is_what_the_formulas_say(aggregator: Aggregator) -> None:
    for count in (1, 2, 7, 8, 300):
        wanted = by_formula(aggregator, NUMBERS[:count].tolist())
        assert score(aggregator, NUMBERS[:count]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
def test_how_numbers_arrive_changes_no_bit_of_a_score(aggregator: Aggregator) -> None:
    whole = score(aggregator, NUMBERS)
    assert score(aggregator, *NUMBERS.reshape(-1, 1)) == whole
    assert score(aggregator, NUMBERS[:0], NUMBERS[:13], NUMBERS[13:]) == whole


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
def test_nothing_has_no_score(aggregator: Aggregator) -> None:
    assert score(aggregator) is None
    assert score(aggregator, NUMBERS[:0]) is None


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_leaves_with_the_window(bad: float) -> None:
    numbers = np.array([1, bad, 2, 3, 4, 5], np.float32)
    rolling = Aggregator(RollingMean(3))
    assert not np.isfinite(score(rolling, numbers[:4]) or 0)
    assert score(rolling, numbers) == 4


def test_a_nan_stays_in_a_maximum() -> None:
    numbers = np.array([1, np.nan, 2], np.float32)
    assert np.isnan(score(Aggregator(reduction=Reduction.MAX), numbers) or 0)
