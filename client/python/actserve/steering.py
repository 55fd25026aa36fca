"""Steering: changes made to activations while tokens are computed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from actserve.errors import InvalidRequest
from actserve.positions import Positions, positions_to_proto
from actserve.sites import Site, SiteLike
from actserve.tensors import as_vector, encode
from actserve.v1 import intervention_pb2


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Adds `coefficient * vector` to the activations of a site, in their own units.

    `vector` has shape [width], is finite, and is sent as float32; a numpy array, a torch tensor or
    a list will do. Raises `InvalidRequest` if it cannot be one.
    """

    site: SiteLike
    vector: ArrayLike
    coefficient: float = 1.0
    positions: Positions = "all"

    def __post_init__(self) -> None:
        # Checked and copied here, so that the line that made a mistake is the line that raises.
        object.__setattr__(self, "site", Site.parse(self.site))
        object.__setattr__(self, "vector", as_vector(self.vector))
        positions_to_proto(self.positions)
        if not abs(self.coefficient) <= float(np.finfo(np.float32).max):
            raise InvalidRequest(
                f"the coefficient is {self.coefficient}; it must be finite in float32",
                reason="TENSOR_NOT_FINITE",
            )

    def to_proto(self) -> intervention_pb2.Intervention:
        """The intervention as the contract writes it."""
        return intervention_pb2.Intervention(
            site=Site.parse(self.site).to_proto(),
            positions=positions_to_proto(self.positions),
            add=intervention_pb2.AddOperation(
                vector=encode(as_vector(self.vector)), coefficient=self.coefficient
            ),
        )


Intervention: TypeAlias = Add
"""Every kind of intervention."""


def steer_to_proto(
    steer: Intervention | Iterable[Intervention],
) -> list[intervention_pb2.Intervention]:
    """One intervention or several, in order."""
    interventions = (steer,) if isinstance(steer, Add) else tuple(steer)
    return [intervention.to_proto() for intervention in interventions]
