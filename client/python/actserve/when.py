"""Conditions: at which of its tokens an intervention acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actserve._checks import described, finite
from actserve.errors import InvalidRequest
from actserve.probes import Probe
from actserve.v1 import intervention_pb2


@dataclass(frozen=True, eq=False)
class When:
    """An intervention acts at a token if the score of the tokens up to this one is above or below a
    bound (Lee et al., "Programming Refusal with Conditional Activation Steering", 2024).

    - `probe`: gives the score. Its site is computed before every site that is changed, or is the
      only one: then its rows are as the interventions before this one left them. With the `reduce`
      "max" a score that has come above a bound stays there: from that token on it acts.
    - `above`, `below`: bounds of the score, at least one; both are met where both are given.

    Checks what it is given when it is made, and raises `InvalidRequest`.

        films = actserve.Probe("resid_post.8", w, reduce="max")
        push = actserve.Add("resid_post.15", v, 4.0, when=actserve.When(films, above=2.0))
    """

    probe: Probe
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        probe: Any = self.probe
        if not isinstance(probe, Probe):
            raise InvalidRequest(
                f"the probe is {described(probe)}; give one, as in When(Probe('resid_post.8', "
                "direction), above=1.0)",
                reason="FIELD_INVALID",
            )
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
        for name, value in bounds.items():
            object.__setattr__(self, name, value)

    def to_proto(self) -> intervention_pb2.Condition:
        """The condition as the contract writes it."""
        return intervention_pb2.Condition(
            probe=self.probe.to_proto(),
            aggregator=self.probe.aggregator_to_proto(),
            above=self.above,
            below=self.below,
        )
