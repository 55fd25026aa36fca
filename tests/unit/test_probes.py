"""Numbers of tokens become scores as the contract says, one token after the other."""

import numpy as np
import pytest

from actserve_server.domain.conditions import Condition
from actserve_server.domain.probes import Aggregator, Ema, Probe, RollingMean, ScoreReduction
from actserve_server.domain.sites import HookPoint, Site

NUMBERS = np.random.default_rng(4).standard_normal(40).astype(np.float32)

AGGREGATORS = [
    Aggregator(smoothing, reduction)
    for smoothing in (None, Ema(0.3), Ema(1.0), RollingMean(1), RollingMean(7), RollingMean(99))
    for reduction in ScoreReduction
]


def reference(numbers: np.ndarray, aggregator: Aggregator) -> np.ndarray:
    """Each score by itself, from all numbers up to its token."""
    y, smooth = numbers.astype(np.float64), []
    for t in range(len(y)):
        match aggregator.smoothing:
            case None:
                smooth.append(y[t])
            case Ema(a):
                weights = [(1 - a) ** t, *(a * (1 - a) ** (t - j) for j in range(1, t + 1))]
                smooth.append(np.dot(weights, y[: t + 1]))
            case RollingMean(tokens):
                smooth.append(y[max(0, t + 1 - tokens) : t + 1].mean())
    reduce = {"NEWEST": lambda s: s[-1], "MEAN": np.mean, "MAX": np.max}
    kind = reduce[aggregator.reduction.name]
    return np.array([kind(smooth[: t + 1]) for t in range(len(smooth))])


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
def test_a_score_is_what_smoothing_and_reduction_make_of_the_numbers_so_far(
    aggregator: Aggregator,
) -> None:
    scores = aggregator.scores(NUMBERS.tolist())
    np.testing.assert_allclose(scores, reference(NUMBERS, aggregator), rtol=1e-12, atol=1e-12)
    # Each token's own number is the only score without memory; some with it come to the same.
    if not aggregator.has_memory:
        assert scores.tolist() == NUMBERS.tolist()


def test_only_each_tokens_own_number_has_no_memory() -> None:
    assert [each.has_memory for each in AGGREGATORS] == [False] + [True] * (len(AGGREGATORS) - 1)


def test_a_number_is_the_component_of_a_row_and_the_bias() -> None:
    rows = np.array([[1, 2], [-3, 0.5]], np.float32)
    probe = Probe(Site(HookPoint.EMBEDDING), np.array([2, -1], np.float32), bias=0.25)
    assert probe.numbers(rows).tolist() == [0.25, -6.25]


@pytest.mark.parametrize(
    ("above", "below", "met"),
    [(1.0, None, [2]), (None, 1.0, [-1, 0]), (-0.5, 2.0, [0, 1]), (0.0, 1.0, [])],
)
def test_a_condition_is_met_between_its_bounds_and_not_at_them(
    above: float | None, below: float | None, met: list[int]
) -> None:
    probe = Probe(Site(HookPoint.EMBEDDING), np.ones(2, np.float32))
    condition = Condition(probe, above=above, below=below)
    assert [score for score in (-1, 0, 1, 2) if condition.meets(score)] == met
