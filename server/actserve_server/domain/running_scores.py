"""Scores of many probes over a sequence, some tokens at a time: as `probes.py` defines them.

What is known of the tokens so far is never changed in place, so whoever holds it can go back.
Nothing depends on how a sequence is cut into parts. Nothing is ever subtracted, so no rounding is
left behind by what is no longer in a window: of a window the part in the newest block of as many
tokens is summed as it comes, and the rest from the end of the block before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator, Attention, Ema, RollingMean, ScoreReduction

Scored = tuple["RunningScores", np.ndarray]
Reduced = tuple[np.ndarray, np.ndarray]


class RunningScores:
    """Of some probes, each a network and how its outputs become a score."""

    def __init__(self, probes: Sequence[tuple[ProbeNetwork, Aggregator]]) -> None:
        ends = np.cumsum([network.outputs for network, _ in probes]).tolist()
        # Those that are computed alike together.
        alike: dict[tuple[Aggregator, int], list[int]] = {}
        for index, (network, aggregator) in enumerate(probes):
            alike.setdefault((aggregator, network.outputs), []).append(index)
        self._probes = len(probes)
        self._groups = tuple(
            _Group.of(
                [probes[index][0] for index in indices],
                np.array(indices),
                np.stack([np.arange(ends[index] - outputs, ends[index]) for index in indices]),
                aggregator,
            )
            for (aggregator, outputs), indices in alike.items()
        )

    def after(self, rows: np.ndarray) -> Scored:
        """With the next tokens, whose outputs are float32 [n, sum of `outputs`], one probe after
        the other: what is known then, and the score as of each token, float64 [n, probes]. From an
        output that is not finite on, a probe's scores are NaN."""
        known = object.__new__(RunningScores)
        known._probes = self._probes
        if len(self._groups) == 1:  # In the order of the probes.
            following, scores = self._groups[0].after(rows)
            known._groups = (following,)
            return known, scores
        scores = np.empty((len(rows), self._probes))
        groups = []
        for group in self._groups:
            following, scores[:, group.indices] = group.after(rows)
            groups.append(following)
        known._groups = tuple(groups)
        return known, scores


class _Smoothed(Protocol):
    def after(self, outputs: np.ndarray) -> "tuple[_Smoothed, np.ndarray]":
        """With the next tokens, float64 [n, probes, outputs of each]: float64 [n, probes]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Probes with the same aggregator and as many outputs each."""

    indices: np.ndarray
    columns: np.ndarray
    """Of their outputs in a row, int64 [probes, outputs of each]."""
    reduction: ScoreReduction
    smoothed: _Smoothed
    reduced: np.ndarray
    """The sum or the highest so far, float64 [1, probes]."""
    lost: np.ndarray
    """Which have had an output that is not finite, bool [probes]."""
    spoilt: bool = False
    """Whether any has."""
    tokens: int = 0

    @staticmethod
    def of(
        networks: Sequence[ProbeNetwork],
        indices: np.ndarray,
        columns: np.ndarray,
        aggregator: Aggregator,
    ) -> "_Group":
        reduction = aggregator.reduction
        start = -np.inf if reduction is ScoreReduction.MAX else 0.0
        none = np.zeros(len(networks), bool)
        smoothed = _smoothed(aggregator, np.array([each.bias for each in networks]))
        first = np.full((1, len(networks)), start)
        return _Group(indices, columns, reduction, smoothed, first, none)

    def after(self, rows: np.ndarray) -> "tuple[_Group, np.ndarray]":
        outputs = rows[:, self.columns].astype(np.float64)
        lost: np.ndarray | None = None
        if not np.isfinite(outputs).all():
            lost = ~np.isfinite(outputs).all(axis=-1)
            outputs = np.where(lost[..., None], 0.0, outputs)
        smoothed, smooth = self.smoothed.after(outputs)
        reduced, scores = self._reduced(smooth)
        lost_now = self.lost
        if lost is not None or self.spoilt:
            lost = np.zeros(scores.shape, bool) if lost is None else lost
            so_far: np.ndarray = np.concatenate([self.lost[None], lost]).cumsum(0) > 0
            lost_now, scores = so_far[-1], np.where(so_far[1:], np.nan, scores)
        following = _Group(
            self.indices,
            self.columns,
            self.reduction,
            smoothed,
            reduced,
            lost_now,
            self.spoilt or lost is not None,
            self.tokens + len(rows),
        )
        return following, scores

    def _reduced(self, smooth: np.ndarray) -> Reduced:
        """The sum or the highest with the next tokens, and the score as of each."""
        one = len(smooth) == 1  # Of a sample that is generated, mostly.
        match self.reduction:
            case ScoreReduction.NEWEST:
                return self.reduced, smooth
            case ScoreReduction.MEAN if one:
                total = self.reduced + smooth
                return total, total / (self.tokens + 1)
            case ScoreReduction.MEAN:
                sums = np.cumsum(np.concatenate([self.reduced, smooth]), axis=0)
                counts = np.arange(self.tokens + 1, self.tokens + 1 + len(smooth))
                return sums[-1:], sums[1:] / counts[:, None]
            case ScoreReduction.MAX if one:
                most = np.maximum(self.reduced, smooth)
                return most, most
            case ScoreReduction.MAX:
                most = np.maximum.accumulate(np.concatenate([self.reduced, smooth]), axis=0)
                return most[-1:], most[1:]


def _smoothed(aggregator: Aggregator, biases: np.ndarray) -> _Smoothed:
    match aggregator.smoothing:
        case None:
            return _AsItIs()
        case Ema(weight):
            return _Average(weight)
        case RollingMean(tokens):
            return _Rolling(tokens)
        case Attention(None):
            return _Attended(biases)
        case Attention(tokens):
            assert tokens is not None
            return _RollingAttention(tokens, biases)


@dataclass(frozen=True, slots=True)
class _AsItIs:
    def after(self, outputs: np.ndarray) -> "tuple[_AsItIs, np.ndarray]":
        return self, outputs[..., 0]


@dataclass(frozen=True, slots=True, eq=False)
class _Average:
    weight: float
    newest: np.ndarray | None = None

    def after(self, outputs: np.ndarray) -> "tuple[_Average, np.ndarray]":
        numbers = outputs[..., 0]
        if not len(numbers):
            return self, numbers
        averages = self.weight * numbers
        newest, kept = self.newest, 1 - self.weight
        if newest is None:
            newest = numbers[0]
        for average in averages:
            average += kept * newest
            newest = average
        return _Average(self.weight, newest.copy()), averages


@dataclass(frozen=True, slots=True, eq=False)
class _Rolling:
    window: int
    rest: np.ndarray | None = None
    """Of the block before: the sums from each of its tokens to its last, and none, float64
    [window + 1, probes]."""
    block: tuple[np.ndarray, ...] = ()
    """The numbers of the newest block."""
    filled: int = 0
    total: np.ndarray | None = None
    """Of the newest block."""

    def after(self, outputs: np.ndarray) -> "tuple[_Rolling, np.ndarray]":
        known, numbers = self, outputs[..., 0]
        means = [numbers[:0]]
        while len(numbers):
            known, part = known._within_block(numbers[: known.window - known.filled])
            means.append(part)
            numbers = numbers[len(part) :]
        return known, np.concatenate(means)

    def _within_block(self, numbers: np.ndarray) -> "tuple[_Rolling, np.ndarray]":
        total = np.zeros(numbers.shape[1:]) if self.total is None else self.total
        sums = np.cumsum(np.concatenate([total[None], numbers]), axis=0)[1:]
        low, high = self.filled + 1, self.filled + len(numbers)
        if self.rest is None:
            means = sums / np.arange(low, high + 1)[:, None]
        else:
            means = (self.rest[low : high + 1] + sums) / self.window
        block = (*self.block, numbers)
        if high < self.window:
            return _Rolling(self.window, self.rest, block, high, sums[-1]), means
        whole = np.concatenate(block)
        rest = np.concatenate([np.cumsum(whole[::-1], axis=0)[::-1], np.zeros_like(whole[:1])])
        return _Rolling(self.window, rest), means


@dataclass(frozen=True, slots=True, eq=False)
class _Weighted:
    """Sums over tokens for each head, with weights relative to the highest query, so that no exp
    overflows. Any leading dimensions."""

    most: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    @staticmethod
    def none(shape: tuple[int, ...]) -> "_Weighted":
        return _Weighted(np.full(shape, -np.inf), np.zeros(shape), np.zeros(shape))

    def after(self, values: np.ndarray, queries: np.ndarray) -> "_Weighted":
        """With one token more each: [n, ...], of sums [...]."""
        most = np.maximum.accumulate(np.concatenate([self.most[None], queries]))
        weights = np.exp(queries - most[1:])
        kept = np.exp(most[:-1] - most[1:])
        sums = np.stack([weights * values, weights], axis=1)
        newest = np.stack([self.values, self.weights])
        for sum_, factor in zip(sums, kept, strict=True):
            sum_ += newest * factor
            newest = sum_
        return _Weighted(most[1:], sums[:, 0], sums[:, 1])

    def joined(self, other: "_Weighted") -> "_Weighted":
        """The sums over the tokens of both, of which the other has some."""
        most = np.maximum(self.most, other.most)
        ours, theirs = np.exp(self.most - most), np.exp(other.most - most)
        return _Weighted(
            most,
            self.values * ours + other.values * theirs,
            self.weights * ours + other.weights * theirs,
        )

    def at(self, index: int | slice) -> "_Weighted":
        return _Weighted(self.most[index], self.values[index], self.weights[index])

    def means(self, biases: np.ndarray) -> np.ndarray:
        """[..., probes] of sums [..., probes, heads]."""
        return biases + (self.values / self.weights).sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class _Attended:
    biases: np.ndarray
    sums: _Weighted | None = None

    def after(self, outputs: np.ndarray) -> "tuple[_Attended, np.ndarray]":
        values, queries = np.split(outputs, 2, axis=-1)
        if not len(values):
            return self, values[..., 0]
        sums = (self.sums or _Weighted.none(values.shape[1:])).after(values, queries)
        return _Attended(self.biases, sums.at(-1)), sums.means(self.biases)


@dataclass(frozen=True, slots=True, eq=False)
class _RollingAttention:
    """In blocks as `_Rolling` is."""

    window: int
    biases: np.ndarray
    rest: _Weighted | None = None
    block: tuple[np.ndarray, ...] = ()
    filled: int = 0
    total: _Weighted | None = None

    def after(self, outputs: np.ndarray) -> "tuple[_RollingAttention, np.ndarray]":
        known, means = self, [outputs[:0, :, 0]]
        while len(outputs):
            known, part = known._within_block(outputs[: known.window - known.filled])
            means.append(part)
            outputs = outputs[len(part) :]
        return known, np.concatenate(means)

    def _within_block(self, outputs: np.ndarray) -> "tuple[_RollingAttention, np.ndarray]":
        values, queries = np.split(outputs, 2, axis=-1)
        none = _Weighted.none(values.shape[1:])
        sums = (self.total or none).after(values, queries)
        low, high = self.filled + 1, self.filled + len(outputs)
        over = sums if self.rest is None else self.rest.at(slice(low, high + 1)).joined(sums)
        means, block = over.means(self.biases), (*self.block, outputs)
        if high < self.window:
            total = sums.at(-1)
            return replace(self, block=block, filled=high, total=total), means
        values, queries = np.split(np.concatenate(block)[::-1], 2, axis=-1)
        back = none.after(values, queries)
        rest = _Weighted(
            *(
                np.concatenate([part[::-1], empty[None]])
                for part, empty in (
                    (back.most, none.most),
                    (back.values, none.values),
                    (back.weights, none.weights),
                )
            )
        )
        return _RollingAttention(self.window, self.biases, rest), means
