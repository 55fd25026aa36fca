"""How far the distribution of scores has drifted, and between which edges it is counted."""

import numpy as np
import pytest

from actserve_server.monitors.drift import population_stability
from actserve_server.monitors.score_edges import read_edges, score_edges, write_edges


@pytest.mark.parametrize("thresholds", [(0.0,), (-3.0,), (1.5, 2.0), (1e30,), (3e38,), (-2.0, 5.0)])
def test_thresholds_are_edges_and_edges_ascend(thresholds: tuple[float, ...]) -> None:
    edges = score_edges(thresholds)
    assert edges.dtype == np.float32
    assert (np.diff(edges) > 0).all()
    assert np.isfinite(edges).all()
    assert set(np.float32(thresholds)) <= set(edges)
    assert len(edges) < 64
    assert np.array_equal(read_edges(write_edges(edges)), edges)


def counts(scores: np.ndarray) -> np.ndarray:
    edges = score_edges([2.0])
    return np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1).astype(np.uint64)


def test_equal_distributions_have_not_drifted_and_shifted_ones_have() -> None:
    rng = np.random.default_rng(0)
    before, same = counts(rng.normal(-1, 1, 3000)), counts(rng.normal(-1, 1, 3000))
    shifted = counts(rng.normal(0.5, 1, 3000))
    assert population_stability(same, before) < 0.02
    assert population_stability(shifted, before) > 0.5


def test_few_samples_alone_are_no_drift() -> None:
    rng = np.random.default_rng(1)
    indices = [
        population_stability(counts(rng.normal(0, 1, 100)), counts(rng.normal(0, 1, 100)))
        for _ in range(200)
    ]
    assert np.median(indices) < 0.2


def test_the_index_is_what_its_formula_says() -> None:
    before, recent = np.array([500, 500], np.uint64), np.array([800, 200], np.uint64)
    p, q = np.array([800.5, 200.5]) / 1001, np.array([0.5, 0.5])
    expected = ((p - q) * np.log(p / q)).sum()
    assert population_stability(recent, before) == pytest.approx(expected)


def test_scores_where_none_were_before_have_drifted() -> None:
    before, recent = np.zeros(10, np.uint64), np.zeros(10, np.uint64)
    before[2] = recent[9] = 1000
    assert 1 < population_stability(recent, before) < np.inf
