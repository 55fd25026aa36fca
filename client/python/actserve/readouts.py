"""Readouts: what to read while a model runs, and what comes of it.

A call may read many things, each at sites and positions of its own, in one forward pass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from actserve._checks import described
from actserve.attention import Attention, AttentionSummary
from actserve.attributions import LogitAttribution
from actserve.errors import InvalidRequest
from actserve.kept import Keep
from actserve.positions import Positions, check_positions, positions_to_proto
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.sites import SiteLike, parse_sites, plain_sites
from actserve.tensors import ElementType, element_type_to_proto
from actserve.v1 import readout_pb2 as pb

Reduction: TypeAlias = Literal["last", "mean", "max"]
"""One row for all the selected positions of a sequence: that of the last position, the mean over
positions, or the maximum element by element."""

_REDUCTIONS: Mapping[str, pb.Reduction] = {
    "last": pb.REDUCTION_LAST,
    "mean": pb.REDUCTION_MEAN,
    "max": pb.REDUCTION_MAX,
}


@dataclass(frozen=True, eq=False)
class Read:
    """Asks for rows of sites, or for what is computed from them.

    - `sites`: one site or several.
    - `positions`: the tokens whose rows to read; see `Positions`.
    - `projection`: what becomes of each row: its components along some directions.
    - `reduce`: what becomes of the rows of a site, after any projection: one row.
    - `element_type`: how rows travel; by default the model's own, which loses nothing, and f32 for
      what is computed from them. The arrays are float32 in any case.
    - `keep`: whether the rows also stay on the server, as the model computed them.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    sites: SiteLike | Iterable[SiteLike]
    positions: Positions = "all"
    projection: Projection | None = None
    reduce: Reduction | None = None
    element_type: ElementType | None = None
    keep: Keep | None = None

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        if not sites:
            raise InvalidRequest(
                "sites is empty; name at least one, as in 'resid_post.10'", reason="FIELD_REQUIRED"
            )
        check_positions(self.positions)
        element_type_to_proto(self.element_type)
        reduction_to_proto(self.reduce)
        check_kind(Projection, self.projection, "projection")
        check_kind(Keep, self.keep, "keep")
        if not self.sends and (self.projection is not None or self.reduce is not None):
            name = "reduce" if self.projection is None else "projection"
            raise InvalidRequest(
                f"keep says that no rows are sent, and they are kept as the model computed them, "
                f"so nothing would come of {name}; leave out one of the two",
                reason="FIELD_INVALID",
            )
        object.__setattr__(self, "sites", sites)

    @property
    def sends(self) -> bool:
        """Whether rows come back."""
        return self.keep is None or self.keep.send

    def to_proto(self) -> list[pb.Readout]:
        """The rows that are sent, and the rows that are kept, as the contract writes them."""
        readouts: list[pb.Readout] = []
        sites = [site.to_proto() for site in plain_sites(self.sites)]
        positions = positions_to_proto(self.positions)
        if self.sends:
            rows = pb.RowReadout(
                sites=sites,
                positions=positions,
                element_type=element_type_to_proto(self.element_type),
                projection=None if self.projection is None else self.projection.to_proto(),
                reduction=reduction_to_proto(self.reduce),
            )
            readouts.append(pb.Readout(rows=rows))
        if self.keep is not None:
            kept = pb.KeepReadout(sites=sites, positions=positions, ttl=self.keep.duration)
            readouts.append(pb.Readout(keep=kept))
        return readouts


Readout: TypeAlias = Read | Predict | Attention | AttentionSummary | LogitAttribution
"""One thing to read."""


def readout_to_proto(readout: Readout, name: str) -> list[pb.Readout]:
    """The readouts of the contract that it is; the first one has the name."""
    match readout:
        case Read():
            protos = readout.to_proto()
        case Predict():
            protos = [pb.Readout(predictions=readout.to_proto())]
        case Attention():
            protos = [pb.Readout(attention=readout.to_proto())]
        case AttentionSummary():
            protos = [pb.Readout(attention_summary=readout.to_proto())]
        case LogitAttribution():
            protos = [pb.Readout(logit_attribution=readout.to_proto())]
    protos[0].name = name
    return protos


def check_kind(cls: type, value: Any, name: str) -> None:
    """Raises `InvalidRequest` unless the value is of the class, or None."""
    if value is not None and not isinstance(value, cls):
        raise InvalidRequest(
            f"{name} is {described(value)}; give {cls.__name__}(...)", reason="FIELD_INVALID"
        )


def reduction_to_proto(name: str | None) -> pb.Reduction:
    """The reduction of a name; None is none. Raises `InvalidRequest`."""
    if name is None:
        return pb.REDUCTION_UNSPECIFIED
    if not isinstance(name, str) or name not in _REDUCTIONS:
        raise InvalidRequest(
            f"reduction {described(name)} does not exist; use one of {', '.join(_REDUCTIONS)}",
            reason="FIELD_INVALID",
        )
    return _REDUCTIONS[name]
