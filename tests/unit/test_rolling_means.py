"""A rolling mean is over its window alone, whatever was before."""

import numpy as np
import pytest

from actserve_server.domain.probes import Aggregator, RollingMean


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 1024])
def test_a_score_is_the_mean_of_the_latest_numbers(tokens: int) -> None:
    numbers = np.random.default_rng(0).standard_normal(3000)
    wanted = [numbers[max(0, end - tokens) : end].mean() for end in range(1, 3001)]
    scores = Aggregator(RollingMean(tokens)).scores(numbers.tolist())
    np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_leaves_with_the_window(bad: float) -> None:
    scores = Aggregator(RollingMean(3)).scores([1, bad, 2, 3, 4, 5])
    assert np.isfinite(scores).tolist() == [True, False, False, False, True, True]
    assert scores[-1] == 4


def test_a_large_number_leaves_no_rounding_behind() -> None:
    scores = Aggregator(RollingMean(2)).scores([1e30, 1e30, 0.25, 0.75])
    assert scores[-1] == 0.5
