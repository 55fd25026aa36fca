"""Scores of many probes, some tokens at a time, are those of one probe, token after token."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import (
    Aggregator,
    Attention,
    Ema,
    RollingMean,
    ScoreReduction,
)
from actserve_server.domain.running_scores import RunningScores
from actserve_server.domain.sites import HookPoint, Site

TOKENS = 12
SITE = (Site(HookPoint.EMBEDDING),)
RNG = np.random.default_rng(5)

LINEAR = [
    Aggregator(smoothing, reduction)
    for smoothing in (None, Ema(0.3), Ema(1.0), RollingMean(1), RollingMean(4), RollingMean(99))
    for reduction in ScoreReduction
]
ATTENTION = [
    Aggregator(Attention(tokens), reduction)
    for tokens in (None, 1, 4, 99)
    for reduction in ScoreReduction
]


def network(heads: int = 1, *, attends: bool = False, bias: float = 0.0) -> ProbeNetwork:
    values, queries = RNG.standard_normal((2, heads, 3)).astype(np.float32)
    return ProbeNetwork(SITE, values, queries=queries if attends else None, bias=bias)


def reference(outputs: np.ndarray, aggregator: Aggregator, bias: float) -> np.ndarray:
    """Of one probe, each score from the beginning: float64 [n] of outputs [n, outputs]."""
    scores = []
    for t in range(len(outputs)):
        smooth = [
            smoothed(outputs[: j + 1].astype(np.float64), aggregator, bias) for j in range(t + 1)
        ]
        reduce = {"NEWEST": lambda s: s[-1], "MEAN": np.mean, "MAX": np.max}
        scores.append(reduce[aggregator.reduction.name](smooth))
    return np.array(scores)


def smoothed(y: np.ndarray, aggregator: Aggregator, bias: float) -> float:
    match aggregator.smoothing:
        case None:
            return y[-1, 0]
        case Ema(a):
            decay = (1 - a) ** np.arange(len(y))[::-1]
            return float(decay @ (y[:, 0] * np.array([1, *[a] * (len(y) - 1)])))
        case RollingMean(tokens):
            return y[-tokens:, 0].mean()
        case Attention(tokens):
            v, q = np.split(y[-(tokens or len(y)) :], 2, axis=1)
            return bias + float(
                sum(np.exp(q[:, h]) @ v[:, h] / np.exp(q[:, h]).sum() for h in range(v.shape[1]))
            )


def cuts(tokens: int) -> Iterator[list[int]]:
    """Every way to cut so many tokens into parts."""
    for bits in itertools.product([False, True], repeat=tokens - 1):
        yield [0, *(index + 1 for index, cut in enumerate(bits) if cut), tokens]


def test_a_probe_that_attends_is_what_the_formula_says_token_after_token() -> None:
    for aggregator in ATTENTION:
        outputs = 3 * RNG.standard_normal((TOKENS, 6)).astype(np.float32)
        scores = aggregator.scores(list(outputs), bias=-0.5)
        np.testing.assert_allclose(scores, reference(outputs, aggregator, -0.5), rtol=1e-12)


PROBES = [
    *((network(), each) for each in LINEAR),
    *((network(heads, attends=True, bias=0.5), each) for heads in (1, 3) for each in ATTENTION),
    # Some that are computed together.
    *((network(), each) for each in LINEAR[:4]),
    *((network(3, attends=True, bias=-2.0), each) for each in ATTENTION[:4]),
]
ROWS = RNG.standard_normal((TOKENS, sum(each.outputs for each, _ in PROBES))).astype(np.float32)


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    ends = np.cumsum([each.outputs for each, _ in PROBES])
    columns = [
        reference(ROWS[:, end - each.outputs : end], aggregator, each.bias)
        for (each, aggregator), end in zip(PROBES, ends, strict=True)
    ]
    return np.stack(columns, axis=1)


def test_all_scores_are_those_of_each_probe_by_itself(wanted: np.ndarray) -> None:
    _, scores = RunningScores(PROBES).after(ROWS)
    np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-12)


def test_how_a_sequence_is_cut_changes_not_one_bit() -> None:
    _, whole = RunningScores(PROBES).after(ROWS)
    known = {0: [RunningScores(PROBES)]}
    # All cuts share what is known at each token, so a few hundred steps make all 2,048 ways.
    for end in range(1, TOKENS + 1):
        reached = []
        for start in range(end):
            for before in known[start][:8]:
                after, scores = before.after(ROWS[start:end])
                assert np.array_equal(scores, whole[start:end])
                reached.append(after)
        known[end] = reached


def test_every_cut_of_a_window_gives_the_same(wanted: np.ndarray) -> None:
    probes = [
        (network(), Aggregator(RollingMean(3))),
        (network(2, attends=True), Aggregator(Attention(3))),
    ]
    rows = ROWS[:9, :5]
    _, whole = RunningScores(probes).after(rows)
    for cut in cuts(9):
        known, parts = RunningScores(probes), []
        for start, end in itertools.pairwise(cut):
            known, scores = known.after(rows[start:end])
            parts.append(scores)
        assert np.array_equal(np.concatenate(parts), whole)


def test_what_is_known_stays_as_it_was_whatever_comes_after() -> None:
    known, _ = RunningScores(PROBES).after(ROWS[:5])
    _, first = known.after(ROWS[5:])
    known.after(100 * ROWS[5:])
    assert np.array_equal(known.after(ROWS[5:])[1], first)


def test_no_token_is_no_score() -> None:
    known, scores = RunningScores(PROBES).after(ROWS[:0])
    assert scores.shape == (0, len(PROBES))
    assert np.array_equal(known.after(ROWS)[1], RunningScores(PROBES).after(ROWS)[1])


def test_large_queries_overflow_nothing() -> None:
    outputs = np.array([[1, 800], [3, -900], [5, 800], [7, 1e30]], np.float32)
    for tokens in (None, 3):
        aggregator = Aggregator(Attention(tokens))
        _, scores = RunningScores([(network(attends=True), aggregator)]).after(outputs)
        assert scores[:, 0].tolist() == aggregator.scores(list(outputs)).tolist() == [1, 1, 3, 7]


def test_a_large_number_leaves_no_rounding_behind() -> None:
    rows = np.array([[1e30], [1e30], [0.25], [0.75], [1]], np.float32)
    _, scores = RunningScores([(network(), Aggregator(RollingMean(2)))]).after(rows)
    assert scores[3:, 0].tolist() == [0.5, 0.875]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 4, 11])
def test_from_an_output_that_is_not_finite_on_a_probe_has_no_score(bad: float, at: int) -> None:
    _, whole = RunningScores(PROBES).after(ROWS)
    column = 0
    for index, (each, _) in enumerate(PROBES):
        rows = ROWS.copy()
        rows[at, column + each.outputs - 1] = bad  # Of attention, a query.
        for size in (5, TOKENS):
            known, parts = RunningScores(PROBES), []
            for start in range(0, TOKENS, size):
                known, scores = known.after(rows[start : start + size])
                parts.append(scores)
            scores = np.concatenate(parts)
            assert np.isnan(scores[at:, index]).all()
            assert np.array_equal(scores[:at], whole[:at])
            others = [other for other in range(len(PROBES)) if other != index]
            assert np.array_equal(scores[:, others], whole[:, others])
        column += each.outputs
