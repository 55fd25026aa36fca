"""Probes: one number for each row of a site, and how numbers become the score of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from actserve._checks import described, finite, integer
from actserve.errors import InvalidRequest
from actserve.readouts import Reduction, reduction_to_proto
from actserve.sites import Site, SiteLike
from actserve.sources import Vector, checked_vector, vector_to_proto
from actserve.tensors import as_direction
from actserve.v1 import probe_pb2 as pb

_MOST_TOKENS = 1024


@dataclass(frozen=True)
class Ema:
    """An exponential moving average: e(t) = a y(t) + (1 - a) e(t - 1), from e(0) = y(0). `weight` a
    is in (0, 1]. Raises `InvalidRequest`."""

    weight: float

    def __post_init__(self) -> None:
        if not 0 < finite(self.weight, "weight") <= 1:
            raise InvalidRequest(
                f"the weight is {self.weight}; it must be above 0 and at most 1",
                reason="FIELD_INVALID",
            )


@dataclass(frozen=True)
class RollingMean:
    """The mean of the last `tokens`, 1 to 1024; of all while there are fewer. Raises
    `InvalidRequest`."""

    tokens: int

    def __post_init__(self) -> None:
        integer(self.tokens, "a number of tokens", range(1, _MOST_TOKENS + 1), "FIELD_INVALID")


Smoothing: TypeAlias = Ema | RollingMean


@dataclass(frozen=True, eq=False)
class Probe:
    """The number w x + b of each row x of a site, and the score of a sequence that they become.

    - `site`: where x is read, after the interventions there.
    - `direction` w has shape [width] and is not zero, or is a stored vector.
    - `bias` b.
    - `smoothing`: what becomes of the number of each token: an `Ema`, a `RollingMean`, or itself.
    - `reduce`: what becomes of the numbers of all tokens so far: "last", "mean" or "max"; the last
      when None.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    site: SiteLike
    direction: Vector
    bias: float = 0.0
    smoothing: Smoothing | None = None
    reduce: Reduction | None = None

    def __post_init__(self) -> None:
        smoothing: Any = self.smoothing
        if not isinstance(smoothing, Ema | RollingMean | None):
            raise InvalidRequest(
                f"the smoothing is {described(smoothing)}; use Ema(weight), RollingMean(tokens) or "
                "None",
                reason="FIELD_INVALID",
            )
        reduction_to_proto(self.reduce)
        object.__setattr__(self, "site", Site.parse(self.site))
        direction = checked_vector(self.direction, "direction", as_direction)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "bias", finite(self.bias, "bias"))

    def to_proto(self) -> pb.Probe:
        """The probe as the contract writes it."""
        return pb.Probe(
            site=Site.parse(self.site).to_proto(),
            direction=vector_to_proto(self.direction),
            bias=self.bias or None,
        )

    def aggregator_to_proto(self) -> pb.ScoreAggregator | None:
        """What becomes of its numbers, as the contract writes it; None where each stays itself."""
        if self.smoothing is None and self.reduce is None:
            return None
        aggregator = pb.ScoreAggregator(reduction=reduction_to_proto(self.reduce))
        match self.smoothing:
            case Ema(weight):
                aggregator.ema.weight = weight
            case RollingMean(tokens):
                aggregator.rolling_mean.tokens = tokens
            case None:
                pass
        return aggregator
