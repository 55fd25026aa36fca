"""The numbers that a probe gives for each token, as the score of a sequence as far as it has come.

They are smoothed, then reduced. Numbers are taken one by one, in constant time and memory for each
token, so the score is the same however they arrive. What is not finite counts for as long as it is
in what is averaged.

Smoothing before a maximum follows Kramár et al., "Building Production-Ready Probes For Gemini",
2026.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actserve_server.domain.reductions import Reduction

MAX_ROLLING_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Ema:
    """e(t) = a y(t) + (1 - a) e(t - 1), from e(0) = y(0). `weight` is a, in (0, 1]."""

    weight: float


@dataclass(frozen=True, slots=True)
class RollingMean:
    """The mean of the last `tokens`, of all of them while there are fewer."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Aggregator:
    """How the numbers of a sequence become its score."""

    smoothing: Ema | RollingMean | None = None
    reduction: Reduction = Reduction.LAST

    def start(self) -> "Scoring":
        """The score of one sequence."""
        return Scoring(self)


class Scoring:
    """Of one sequence, token by token."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._smooth = _smoother(aggregator.smoothing)
        self._reducer = aggregator.reduction.start()

    def add(self, numbers: np.ndarray) -> None:
        """Takes those of the next tokens, [n]."""
        smoothed = [self._smooth(number) for number in numbers.tolist()]
        self._reducer.add(np.array(smoothed, np.float64).reshape(-1, 1))

    @property
    def score(self) -> float | None:
        """So far; None before the first token."""
        reduced = self._reducer.result()
        return None if reduced is None else float(reduced[0])


class _Smoother(Protocol):
    def __call__(self, number: float) -> float: ...


def _smoother(smoothing: Ema | RollingMean | None) -> _Smoother:
    match smoothing:
        case Ema(weight):
            return _Average(weight)
        case RollingMean(tokens):
            return _Window(tokens)
        case None:
            return lambda number: number


class _Average:
    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._value: float | None = None

    def __call__(self, number: float) -> float:
        if self._value is None or self._weight == 1:
            self._value = number
        else:
            self._value = self._weight * number + (1 - self._weight) * self._value
        return self._value


class _Window:
    """Nothing is ever subtracted, so no rounding adds up and nothing infinite stays: what is older
    is there as sums from each number to the newest of the older ones."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._newer: list[float] = []
        self._newer_sum = 0.0
        self._older_sums: list[float] = []
        """The oldest number's last."""

    def __call__(self, number: float) -> float:
        if len(self._newer) + len(self._older_sums) == self._tokens:
            self._drop_oldest()
        self._newer.append(number)
        self._newer_sum += number
        older = self._older_sums[-1] if self._older_sums else 0.0
        return (older + self._newer_sum) / (len(self._newer) + len(self._older_sums))

    def _drop_oldest(self) -> None:
        if not self._older_sums:
            total = 0.0
            for number in reversed(self._newer):
                total += number
                self._older_sums.append(total)
            self._newer, self._newer_sum = [], 0.0
        self._older_sums.pop()
