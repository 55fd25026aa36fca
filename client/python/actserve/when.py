"""Conditions: at which of its tokens an intervention acts."""

from dataclasses import dataclass
from typing import Literal

from actserve._checks import described, finite, integer
from actserve.errors import InvalidRequest
from actserve.sites import Site, SiteLike
from actserve.sources import Vector, checked_vector, vector_to_proto
from actserve.tensors import as_direction
from actserve.v1 import intervention_pb2, probe_pb2, readout_pb2

MAX_WINDOW = 1024
"""Tokens of a rolling mean."""

_REDUCTIONS = {
    "newest": readout_pb2.REDUCTION_UNSPECIFIED,
    "mean": readout_pb2.REDUCTION_MEAN,
    "max": readout_pb2.REDUCTION_MAX,
}


@dataclass(frozen=True)
class Ema:
    """e(t) = a y(t) + (1 - a) e(t - 1), from e(0) = y(0): an exponential moving average.

    `weight` a is above 0 and at most 1.
    """

    weight: float

    def __post_init__(self) -> None:
        weight = finite(self.weight, "the weight of the moving average")
        if not 0 < weight <= 1:
            raise InvalidRequest(
                f"the weight of the moving average is {weight:g}; give one above 0 and at most 1",
                reason="FIELD_INVALID",
            )
        object.__setattr__(self, "weight", weight)


@dataclass(frozen=True)
class RollingMean:
    """The mean of the last `tokens`, 1 to 1024; of all of them while there are fewer."""

    tokens: int

    def __post_init__(self) -> None:
        tokens = integer(
            self.tokens, "the tokens of the rolling mean", range(1, MAX_WINDOW + 1), "FIELD_INVALID"
        )
        object.__setattr__(self, "tokens", tokens)


@dataclass(frozen=True)
class Aggregator:
    """How the numbers of the tokens so far become one score: smoothed, then reduced.

    `reduction` is "newest", the last of the smoothed numbers, "mean" or "max". With "max" a score
    that has come above a bound stays there: an intervention acts from the first such token on.
    """

    smoothing: Ema | RollingMean | None = None
    reduction: Literal["newest", "mean", "max"] = "newest"

    def __post_init__(self) -> None:
        if not isinstance(self.smoothing, Ema | RollingMean | None):
            raise InvalidRequest(
                f"the smoothing is {described(self.smoothing)}; give Ema(0.5), RollingMean(8) or "
                "None",
                reason="FIELD_INVALID",
            )
        if not isinstance(self.reduction, str) or self.reduction not in _REDUCTIONS:
            raise InvalidRequest(
                f"the reduction is {described(self.reduction)}; give one of "
                f"{', '.join(_REDUCTIONS)}",
                reason="FIELD_INVALID",
            )

    def to_proto(self) -> probe_pb2.ScoreAggregator:
        """The aggregator as the contract writes it."""
        proto = probe_pb2.ScoreAggregator(reduction=_REDUCTIONS[self.reduction])
        match self.smoothing:
            case Ema(weight):
                proto.ema.weight = weight
            case RollingMean(tokens):
                proto.rolling_mean.tokens = tokens
            case None:
                pass
        return proto


FROM_THE_FIRST_ON = Aggregator(reduction="max")
"""A condition that was met once stays so."""


@dataclass(frozen=True, eq=False)
class When:
    """An intervention acts at a token if the score of the tokens up to this one is above or below a
    bound (Lee et al., "Programming Refusal with Conditional Activation Steering", 2024).

    - `site`: where a linear probe reads each row x. It is computed before every site that is
      changed, or is the only one: then x is as the interventions before this one left it.
    - `direction`: w, [width of the site], not zero; the probe's number is w . x + b.
    - `above`, `below`: bounds of the score, at least one; both are met where both are given.
    - `bias`: b.
    - `aggregator`: how the numbers become a score; each token's own when None.

        asked = actserve.When("resid_post.8", w, above=2.0, aggregator=actserve.FROM_THE_FIRST_ON)
        client.generate(prompt, steer=actserve.Add("resid_post.15", v, 4.0, when=asked))
    """

    site: SiteLike
    direction: Vector
    above: float | None = None
    below: float | None = None
    bias: float = 0.0
    aggregator: Aggregator | None = None

    def __post_init__(self) -> None:
        bounds = {
            name: finite(bound, name)
            for name, bound in (("above", self.above), ("below", self.below))
            if bound is not None
        }
        if not bounds:
            raise InvalidRequest(
                "a condition without bounds decides nothing; give above, below or both",
                reason="FIELD_REQUIRED",
            )
        if len(bounds) == 2 and bounds["above"] >= bounds["below"]:
            raise InvalidRequest(
                f"no score is above {bounds['above']:g} and below {bounds['below']:g}; exchange "
                "them, or give one",
                reason="FIELD_INVALID",
            )
        if not isinstance(self.aggregator, Aggregator | None):
            raise InvalidRequest(
                f"the aggregator is {described(self.aggregator)}; give one, as in "
                "Aggregator(Ema(0.5))",
                reason="FIELD_INVALID",
            )
        values = {
            "site": Site.parse(self.site),
            "direction": checked_vector(self.direction, "direction", as_direction),
            "bias": finite(self.bias, "bias"),
            **bounds,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_proto(self) -> intervention_pb2.Condition:
        """The condition as the contract writes it."""
        return intervention_pb2.Condition(
            probe=probe_pb2.Probe(
                site=Site.parse(self.site).to_proto(),
                direction=vector_to_proto(self.direction),
                bias=self.bias or None,
            ),
            aggregator=self.aggregator.to_proto() if self.aggregator else None,
            above=self.above,
            below=self.below,
        )
