"""What is told of how well a probe does is what the formulas say, on small examples by hand."""

import numpy as np
import pytest

from actserve_server.domain.roc import auroc
from actserve_server.monitors.fit_quality import (
    Scored,
    bootstrap,
    log_auroc,
    over_shuffles,
    quality,
    recall,
    threshold,
)


def scored(positive: np.ndarray, negative: np.ndarray, groups: np.ndarray | None = None) -> Scored:
    scores = np.concatenate([positive, negative])
    is_positive = np.arange(len(scores)) < len(positive)
    return Scored(scores, is_positive, np.arange(len(scores)) if groups is None else groups)


def draws(count: int = 50, apart: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    return (rng.normal(size=count) + apart).round(1), rng.normal(size=2 * count).round(1)


@pytest.mark.parametrize("share", [0.3, 0.2, 0.1, 0.001])
def test_a_threshold_is_the_lowest_that_the_share_keeps_to(share: float) -> None:
    negative = draws()[1]
    found = threshold(negative, share)
    assert (negative > found).sum() <= share * len(negative)
    lower = max((each for each in negative if each < found - 1e-6), default=-np.inf)
    assert (negative > lower).sum() > share * len(negative)


def test_with_few_texts_it_is_the_highest_score_and_as_a_float32_not_below_it() -> None:
    for highest in (0.1, 1.0, 1 / 3, -2 / 3):
        found = threshold(np.array([highest, highest - 1]), 0.001)
        assert found == np.float32(found)
        assert highest <= found < highest + 1e-6


def test_a_tenth_of_ten_is_one_though_float32_has_no_tenth() -> None:
    assert threshold(np.arange(10.0), float(np.float32(0.1))) == 8
    assert threshold(np.arange(1000.0), float(np.float32(0.001))) == 998


def test_recall_allows_no_false_positive_where_there_are_too_few_to_allow_one() -> None:
    positive = np.array([0.5, 2.0, 3.0, 4.0])
    assert recall(positive, np.arange(3.0), 0.01) == 0.5
    assert recall(positive, np.append(np.arange(1.0, 100), 3.5) / 99, 0.01) == 0.75


def test_log_auroc_is_the_mean_recall_over_rates_evenly_on_a_logarithmic_scale() -> None:
    rates = np.logspace(-3, -1, 20_001)
    for count in (20, 300, 2000):
        rng = np.random.default_rng(count)
        positive, negative = rng.normal(size=40) + 2, rng.normal(size=count)
        each = [recall(positive, negative, rate) for rate in (rates[1:] * rates[:-1]) ** 0.5]
        assert log_auroc(positive, negative) == pytest.approx(np.mean(each), abs=1e-3)


def test_log_auroc_of_what_is_told_apart_is_one_and_of_chance_nearly_nothing() -> None:
    assert log_auroc(np.ones(4), np.zeros(500)) == pytest.approx(1)
    rng = np.random.default_rng(0)
    assert log_auroc(rng.normal(size=2000), rng.normal(size=2000)) < 0.05


def test_the_bootstrap_is_that_of_resampling_one_by_one() -> None:
    positive, negative = draws()
    given = scored(positive, negative)
    rng = np.random.default_rng(0)
    count = len(given.scores)
    areas = []
    for _ in range(1000):
        drawn = rng.integers(count, size=count)
        kinds = given.is_positive[drawn]
        areas.append(auroc(given.scores[drawn][kinds], given.scores[drawn][~kinds]))
    np.testing.assert_allclose(bootstrap(given), np.quantile(areas, [0.025, 0.975]), rtol=1e-12)


def test_what_comes_in_groups_is_less_certain() -> None:
    positive, negative = np.repeat(draws(8)[0], 8), np.repeat(draws(8)[1], 8)
    alone = bootstrap(scored(positive, negative))
    grouped = bootstrap(scored(positive, negative, np.arange(24).repeat(8)))
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])


def test_a_quality_says_it_all_and_no_more_scores_than_are_told() -> None:
    positive, negative = draws(6000)
    found = quality(scored(positive, negative))
    assert (found.positives, found.negatives) == (6000, 12000)
    assert found.auroc == auroc(positive, negative)
    assert found.auroc_low < found.auroc < found.auroc_high
    assert found.log_auroc == log_auroc(positive, negative)
    assert found.recall_at_1_percent == recall(positive, negative, 0.01)
    assert found.recall_at_01_percent == recall(positive, negative, 0.001)
    for told, given in ((found.positive_scores, positive), (found.negative_scores, negative)):
        assert len(told) == 4096
        assert (told[0], told[-1]) == (np.float32(given.min()), np.float32(given.max()))
        assert (np.diff(told) >= 0).all()


def test_a_control_is_the_mean_over_its_shuffles_with_the_spread_of_them() -> None:
    every = [scored(*draws(apart=apart)) for apart in (-2, -1, 0, 1, 2)]
    areas = [auroc(each.positive, each.negative) for each in every]
    found = over_shuffles(every)
    assert found.auroc == pytest.approx(np.mean(areas))
    assert found.auroc_low < np.mean(areas) - 0.3
    assert found.auroc_high > np.mean(areas) + 0.3
    np.testing.assert_array_equal(
        found.positive_scores, np.sort(every[0].positive).astype(np.float32)
    )
