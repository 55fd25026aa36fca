"""Linear probes: a number for each token, and what becomes of the numbers of a sequence.

This is the definition, one token after the other; engines may compute it another way but to the
same result, and `running_scores.py` does it for many probes at once. The score of a token is a
function of the numbers up to it, from the first token that counts on.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate

import numpy as np

from actserve_server.domain.sites import Site


@dataclass(frozen=True, eq=False)
class Probe:
    """w x + b for each row x of a site. `direction` w is float32 [width], finite and not zero."""

    site: Site
    direction: np.ndarray
    bias: float = 0.0

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Of rows, float32 [n, width]: float32 [n]."""
        with np.errstate(over="ignore", invalid="ignore"):  # Such a score is not finite.
            return rows @ self.direction + np.float32(self.bias)


@dataclass(frozen=True, slots=True)
class Ema:
    """e(t) = a y(t) + (1 - a) e(t - 1), from e(0) = y(0), with the weight a in (0, 1]."""

    weight: float


@dataclass(frozen=True, slots=True)
class RollingMean:
    """The mean of the last numbers; of all of them while there are fewer."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Attention:
    """b + the sum over heads of the mean of the last values v, each weighted by exp(q) of its query
    q; of all tokens so far where `tokens` is None. Only for what gives heads
    (`ProbeNetwork.queries`).

    Kramar et al., "Building Production-Ready Probes For Gemini", 2026.
    """

    tokens: int | None = None


Smoothing = Ema | RollingMean | Attention


class ScoreReduction(Enum):
    """What becomes of the smoothed numbers of all tokens so far."""

    NEWEST = auto()
    MEAN = auto()
    MAX = auto()


@dataclass(frozen=True, slots=True)
class Aggregator:
    """Numbers are smoothed, then reduced. The default is each token's own number."""

    smoothing: Smoothing | None = None
    reduction: ScoreReduction = ScoreReduction.NEWEST

    @property
    def has_memory(self) -> bool:
        """Whether a score depends on earlier tokens."""
        return self.smoothing is not None or self.reduction is not ScoreReduction.NEWEST

    def scores(self, numbers: "Iterable[float | np.ndarray]", bias: float = 0.0) -> np.ndarray:
        """The score of each token of a sequence, float64 [n]; arguments are as `RunningScore`
        has them."""
        running = RunningScore(self, bias)
        return np.array([running.add(number) for number in numbers], np.float64)


EACH_TOKEN = Aggregator()
"""Scores a token by its own number."""


class RunningScore:
    """The score of a sequence as far as it has come."""

    def __init__(self, aggregator: Aggregator, bias: float = 0.0) -> None:
        """`bias` is what attention adds to its sum over heads; in other numbers it is already."""
        self._aggregator = aggregator
        smoothing = aggregator.smoothing
        attends = isinstance(smoothing, Attention)
        self._attention = _Attention(smoothing.tokens, bias) if attends else None
        self._window = _Window(smoothing.tokens if isinstance(smoothing, RollingMean) else 1)
        self._average: float | None = None
        self._total = 0.0
        self._most = -np.inf
        self._count = 0

    def add(self, number: float | np.ndarray) -> float:
        """The score with the number of the next token; for attention with what it has of each head,
        [2 x heads], the values and then the queries."""
        smooth = self._attended(number) if self._attention else self._smoothed(float(number))
        self._count += 1
        match self._aggregator.reduction:
            case ScoreReduction.NEWEST:
                return smooth
            case ScoreReduction.MEAN:
                self._total += smooth
                return self._total / self._count
            case ScoreReduction.MAX:
                self._most = float(np.maximum(self._most, smooth))
                return self._most

    def _attended(self, outputs: float | np.ndarray) -> float:
        assert self._attention is not None
        values, queries = np.split(np.asarray(outputs, np.float64), 2)
        return self._attention.mean(values, queries)

    def _smoothed(self, number: float) -> float:
        match self._aggregator.smoothing:
            case None:
                return number
            case Ema(weight):
                before = number if self._average is None else self._average
                self._average = weight * number + (1 - weight) * before
                return self._average
            case RollingMean():
                return self._window.mean(number)
            case Attention():
                raise TypeError("attention is of values and queries, not of one number")


class _Attention:
    """Of the latest tokens, computed anew each time; or of all, of which sums are kept, relative to
    the highest query so far, so that no exp overflows."""

    def __init__(self, tokens: int | None, bias: float) -> None:
        self._bias = bias
        self._latest: deque[tuple[np.ndarray, np.ndarray]] | None = (
            None if tokens is None else deque(maxlen=tokens)
        )
        self._most: np.ndarray | float = -np.inf
        self._values: np.ndarray | float = 0.0
        self._weights: np.ndarray | float = 0.0

    def mean(self, values: np.ndarray, queries: np.ndarray) -> float:
        """With the next token, float64 [heads] each."""
        with np.errstate(invalid="ignore"):  # What is not finite gives no finite score.
            if self._latest is not None:
                self._latest.append((values, queries))
                v, q = (np.array(each) for each in zip(*self._latest, strict=True))
                weights = np.exp(q - q.max(0))
                return self._bias + float(((weights * v).sum(0) / weights.sum(0)).sum())
            most = np.maximum(self._most, queries)
            kept, weight = np.exp(self._most - most), np.exp(queries - most)
            self._most = most
            self._values = self._values * kept + weight * values
            self._weights = self._weights * kept + weight
            return self._bias + float((self._values / self._weights).sum())


class _Window:
    """The latest numbers. Each takes constant time. Nothing is ever subtracted, so no rounding adds
    up and nothing infinite stays: what is older is there as sums, from each number to the newest of
    the older ones."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._newer: list[float] = []
        self._newer_sum = 0.0
        self._older_sums: list[float] = []
        """The oldest number's last."""

    def mean(self, number: float) -> float:
        """With the next number, and without the oldest if there are enough."""
        if len(self._newer) + len(self._older_sums) == self._tokens:
            self._drop_oldest()
        self._newer.append(number)
        self._newer_sum += number
        older = self._older_sums[-1] if self._older_sums else 0.0
        return (older + self._newer_sum) / (len(self._newer) + len(self._older_sums))

    def _drop_oldest(self) -> None:
        if not self._older_sums:
            self._older_sums = list(accumulate(reversed(self._newer)))
            self._newer, self._newer_sum = [], 0.0
        self._older_sums.pop()
