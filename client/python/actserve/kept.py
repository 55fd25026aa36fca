"""Kept activations: captured rows that stay on the server for a while, so that patching needs no
round trip.

They are named by secrets: who knows a name may use and delete what it names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, SupportsIndex

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from actserve._checks import UINT32, described, distinct, several
from actserve._names import short
from actserve._times import time_from_proto
from actserve.errors import InvalidRequest
from actserve.sites import Site, SiteLike, site_name
from actserve.tensors import element_type_name
from actserve.v1 import kept_activations_service_pb2, source_pb2

_PREFIX = "keptActivations/"
_MAX_SECONDS = 315_576_000_000
"""Of a `google.protobuf.Duration`."""


@dataclass(frozen=True)
class Keep:
    """Asks that the captured rows also stay on the server, as the model computed them.

    - `ttl`: for how many seconds; the server's default when None, and `Limits.max_kept_seconds` at
      most.
    - `send`: whether the rows are sent as well.

    Raises `InvalidRequest`.
    """

    ttl: float | None = None
    send: bool = True

    def __post_init__(self) -> None:
        ttl: Any = self.ttl
        if ttl is not None and not (isinstance(ttl, int | float) and 0 < ttl <= _MAX_SECONDS):
            raise InvalidRequest(
                f"the ttl is {described(ttl)}; it must be a number of seconds above 0",
                reason="FIELD_INVALID",
            )

    @property
    def duration(self) -> Duration | None:
        """For how long; None for the server's default."""
        if self.ttl is None:
            return None
        duration = Duration()
        duration.FromTimedelta(timedelta(seconds=self.ttl))
        return duration


@dataclass(frozen=True)
class KeptRows:
    """Some of the rows that are kept, in place of an array: the rows of `Replace`, the directions
    of a `Project` or a `Projection`, or, as one row, the vector of any other intervention.

    - `name`: what `Activations.kept` says.
    - `site`: the site whose rows to take. When None, each changed site takes its own, and a
      `Projection` those of the one site it reads. With heads, each takes its own part of a row.
    - `positions`: which of the positions kept, counted in the sequence they were captured from and
      ascending; all when empty. One where a vector is wanted.

    Raises `InvalidRequest`.
    """

    name: str
    site: SiteLike | None = None
    positions: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] = ()

    def __post_init__(self) -> None:
        kept_name(self.name)
        positions = distinct(self.positions, "a kept position", UINT32, "POSITION_OUT_OF_RANGE")
        if [*positions] != sorted(positions):
            raise InvalidRequest(
                f"the kept positions {[*positions]} are not ascending; sort them, as the rows are",
                reason="POSITION_OUT_OF_RANGE",
            )
        object.__setattr__(self, "site", None if self.site is None else Site.parse(self.site))
        object.__setattr__(self, "positions", positions)

    def to_proto(self) -> source_pb2.KeptRows:
        """The rows as the contract names them."""
        return source_pb2.KeptRows(
            name=self.name,
            site=None if self.site is None else Site.parse(self.site).to_proto(),
            positions=several(self.positions),
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """What a server keeps under a name."""

    name: str
    sites: tuple[str, ...]
    """The canonical names of the sites kept."""
    positions: tuple[int, ...]
    """The token positions kept, ascending; the same for every site."""
    size_bytes: int
    expire_time: datetime
    """When they are freed, in UTC."""
    model: str
    """The id of the model that computed them."""
    element_type: str
    """The element type they are kept in: "f32", "f16" or "bf16"."""
    create_time: datetime
    """When they were kept first, in UTC."""
    adapter: str = ""
    """The id of the LoRA adapter that the model ran with; empty if it had none."""


def is_kept_name(name: str) -> bool:
    """Whether a text is the name of kept activations."""
    return name.startswith(_PREFIX)


def kept_name(name: object) -> str:
    """The name of kept activations. Raises `InvalidRequest` if it cannot be one."""
    if not isinstance(name, str) or not is_kept_name(name):
        raise InvalidRequest(
            f"{described(name)} does not name kept activations; use what `activations.kept` says "
            "after a capture with keep=Keep()",
            reason="FIELD_INVALID",
        )
    return name


def kept_from_proto(kept: kept_activations_service_pb2.KeptActivations) -> Kept:
    """Kept activations as the contract describes them."""
    return Kept(
        name=kept.name,
        sites=tuple(site_name(site) for site in kept.sites),
        positions=tuple(kept.positions),
        size_bytes=kept.size_bytes,
        expire_time=time_from_proto(kept.expire_time),
        model=kept.model.removeprefix("models/"),
        element_type=element_type_name(kept.element_type),
        create_time=time_from_proto(kept.create_time),
        adapter=short(kept.adapter),
    )
