"""Aggregators: how the numbers that probes give for each token become the score of a sequence.

Numbers are smoothed, then reduced. Which way is best depends on the data (Kramar et al., "Building
Production-Ready Probes For Gemini", 2026; Cunningham et al., "Constitutional Classifiers++", 2026):
let `client.monitors.fit` measure it. Each is also written as a text, as on a command line:

| text | the score as of a token |
|---|---|
| `"each"`, `"last"` | its own number |
| `"mean"`, `"max"` | the mean, or the highest, of all numbers so far |
| `"ema(0.5)"`, `"ema_max(0.5)"` | an exponential moving average, or its highest so far |
| `"rolling_mean(16)"`, `"rolling_mean_max(16)"` | the mean of the last numbers, or its highest |
| `"attention"`, `"attention(10)"` | means that a network weights, over all or the last tokens |
| `"rolling_attention_max(10)"` | the highest of those over the last tokens |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from actserve._checks import described, integer
from actserve.errors import InvalidRequest
from actserve.probes import Ema, Probe, RollingMean
from actserve.readouts import Reduction, reduction_to_proto
from actserve.v1 import probe_pb2 as pb

_MOST_TOKENS = 128


@dataclass(frozen=True)
class AttentionSmoothing:
    """Means that the probe itself weights, over the last `tokens`, 1 to 128, or all so far; of a
    `ProbeNetwork` with `queries`, which needs it. Raises `InvalidRequest`."""

    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            integer(self.tokens, "a number of tokens", range(1, _MOST_TOKENS + 1), "FIELD_INVALID")


@dataclass(frozen=True)
class Aggregator:
    """How numbers of tokens become a score: `smoothing`, an `Ema`, a `RollingMean`, an
    `AttentionSmoothing` or none, then `reduce`, "last", "mean" or "max" of all so far. Raises
    `InvalidRequest`.

        Aggregator(RollingMean(10), "max")  # as rolling_mean_max(10) and "rolling_mean_max(10)"
    """

    smoothing: Ema | RollingMean | AttentionSmoothing | None = None
    reduce: Reduction = "last"

    def __post_init__(self) -> None:
        smoothing: Any = self.smoothing
        if not isinstance(smoothing, Ema | RollingMean | AttentionSmoothing | None):
            raise InvalidRequest(
                f"the smoothing is {described(smoothing)}; use Ema(weight), RollingMean(tokens), "
                "AttentionSmoothing(tokens) or None",
                reason="FIELD_INVALID",
            )
        reduction_to_proto(self.reduce)

    def to_proto(self) -> pb.ScoreAggregator:
        """The aggregator as the contract writes it."""
        made = pb.ScoreAggregator(reduction=reduction_to_proto(self.reduce))
        match self.smoothing:
            case Ema(weight):
                made.ema.weight = weight
            case RollingMean(tokens):
                made.rolling_mean.tokens = tokens
            case AttentionSmoothing(tokens):
                made.attention.SetInParent()
                if tokens is not None:
                    made.attention.tokens = tokens
            case None:
                pass
        return made

    def __str__(self) -> str:
        highest = "_max" if self.reduce == "max" else ""
        match self.smoothing:
            case Ema(weight):
                text = f"ema{highest}({weight:g})"
            case RollingMean(tokens):
                text = f"rolling_mean{highest}({tokens})"
            case AttentionSmoothing(None):
                text = "attention_max" if highest else "attention"
            case AttentionSmoothing(tokens):
                text = f"rolling_attention_max({tokens})" if highest else f"attention({tokens})"
            case None:
                return self.reduce
        return f"mean of {text}" if self.reduce == "mean" else text


AggregatorLike: TypeAlias = "Aggregator | Ema | RollingMean | AttentionSmoothing | str"
"""An `Aggregator`, a smoothing alone, or a text of the table above."""


def ema(weight: float) -> Aggregator:
    """An exponential moving average of the numbers: e(t) = a y(t) + (1 - a) e(t - 1) with the
    weight a in (0, 1]."""
    return Aggregator(Ema(weight))


def ema_max(weight: float) -> Aggregator:
    """The highest value so far of an exponential moving average."""
    return Aggregator(Ema(weight), "max")


def rolling_mean(tokens: int) -> Aggregator:
    """The mean of the last `tokens` numbers."""
    return Aggregator(RollingMean(tokens))


def rolling_mean_max(tokens: int) -> Aggregator:
    """The highest mean so far of `tokens` numbers in a row."""
    return Aggregator(RollingMean(tokens), "max")


def attention(tokens: int | None = None) -> Aggregator:
    """Means that a network with `queries` weights, over the last `tokens`, or all so far."""
    return Aggregator(AttentionSmoothing(tokens))


def attention_max() -> Aggregator:
    """The highest value so far of means over all tokens that a network with `queries` weights."""
    return Aggregator(AttentionSmoothing(), "max")


def rolling_attention_max(tokens: int) -> Aggregator:
    """The highest value so far of means over the last `tokens` that a network weights."""
    return Aggregator(AttentionSmoothing(tokens), "max")


_PLAIN: dict[str, Reduction] = {"each": "last", "last": "last", "mean": "mean", "max": "max"}
_OF_TOKENS = {
    "rolling_mean": rolling_mean,
    "rolling_mean_max": rolling_mean_max,
    "attention": attention,
    "rolling_attention_max": rolling_attention_max,
}
_OF_WEIGHT = {"ema": ema, "ema_max": ema_max}
_CALL = re.compile(r"([a-z_]+)(?:\(([0-9.]+)\))?")


def aggregator(given: AggregatorLike) -> Aggregator:
    """The aggregator, however it is given. Raises `InvalidRequest` for anything else."""
    if isinstance(given, Aggregator):
        return given
    if isinstance(given, Ema | RollingMean | AttentionSmoothing):
        return Aggregator(given)
    if isinstance(given, str) and (found := _parsed(given)):
        return found
    raise InvalidRequest(
        f"the aggregator {described(given)} does not exist; use 'each', 'last', 'mean', 'max', "
        "'ema(0.5)', 'ema_max(0.5)', 'rolling_mean(10)', 'rolling_mean_max(10)', 'attention', "
        "'attention(10)', 'rolling_attention_max(10)' or an Aggregator",
        reason="FIELD_INVALID",
        path=("aggregator",),
    )


def _parsed(text: str) -> Aggregator | None:
    found = _CALL.fullmatch(text.replace(" ", ""))
    if not found:
        return None
    name, number = found[1], found[2]
    if number is None:
        if name in ("attention", "attention_max"):
            return attention() if name == "attention" else attention_max()
        return Aggregator(None, _PLAIN[name]) if name in _PLAIN else None
    if name in _OF_TOKENS and number.isdigit():
        return _OF_TOKENS[name](int(number))
    try:
        return _OF_WEIGHT[name](float(number)) if name in _OF_WEIGHT else None
    except ValueError:
        return None


def of_probe(probe: Probe) -> Aggregator | None:
    """What a probe itself says of it; None if it says nothing."""
    if probe.smoothing is None and probe.reduce is None:
        return None
    return Aggregator(probe.smoothing, probe.reduce or "last")


def aggregator_from_proto(told: pb.ScoreAggregator) -> Aggregator:
    """An aggregator as the contract writes it; of a newer server's smoothing nothing is known."""
    reductions = {reduction_to_proto(name): name for name in ("last", "mean", "max")}
    reduce: Any = reductions.get(told.reduction, "last")
    match told.WhichOneof("smoothing"):
        case "ema":
            # The weight of a float32, as it was written.
            return Aggregator(Ema(float(f"{told.ema.weight:.7g}")), reduce)
        case "rolling_mean":
            return Aggregator(RollingMean(told.rolling_mean.tokens), reduce)
        case "attention":
            tokens = told.attention.tokens if told.attention.HasField("tokens") else None
            return Aggregator(AttentionSmoothing(tokens), reduce)
        case _:
            return Aggregator(None, reduce)
