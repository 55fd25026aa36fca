"""Projections from the wire."""

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.domain.sites import Site
from actserve_server.rpc.requests import named_dictionaries, vector_sources
from actserve_server.rpc.requests.vector_sources import Found, Target


def projection(
    wire: pb.Projection, sites: tuple[Site, ...], found: Found, field: FieldPath
) -> Projection:
    """The projection of rows of all these sites, with every tensor as the readout needs it."""
    if wire.dictionary:
        return _by_dictionary(wire, sites, found, field)
    info, at = found.info, (*field, "directions")
    width = info.at(sites[0]).width
    if not wire.HasField("directions"):
        raise vector_sources.unset(at, f"[directions, {width}]")
    for site in sites:
        if info.at(site).width != width:
            raise ActserveError(
                Reason.TENSOR_WIDTH_MISMATCH,
                f"a row of {sites[0]} is {width} wide, but one of {site} is "
                f"{info.at(site).width} wide, and the same directions cannot fit both; read sites "
                "of other widths apart",
                field=at,
                metadata={"site": site, "width": info.at(site).width},
            )
    first, *others = sites
    if others and vector_sources.takes_own_rows(wire.directions, found):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the rows name no site, and {len(sites)} sites are read; name whose rows the "
            "directions are",
            field=(*at, "kept", "site"),
        )
    target = Target(sites=sites, width=width, name=f"a row of {first}")
    directions = vector_sources.matrix(wire.directions, target, found, at)
    count, bias = len(directions), None
    if wire.HasField("bias"):
        bias = vector_sources.numbers(wire.bias, count, _projected(count), (*field, "bias"))
    return Projection(directions, bias, _activation(wire, count, field))


def _by_dictionary(
    wire: pb.Projection, sites: tuple[Site, ...], found: Found, field: FieldPath
) -> Projection:
    given: list[str] = [name for name in ("directions", "bias") if wire.HasField(name)]
    if (activation := wire.WhichOneof("activation")) is not None:
        given.append(activation)
    for name in given:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the dictionary has its own directions, bias and activation; leave {name} unset, or "
            "dictionary",
            field=(*field, name),
        )
    of = found.dictionaries[wire.dictionary]
    for site in sites:
        there = found.info.at(site).width
        named_dictionaries.check_width(
            of.about.width, there, f"a row of {site}", (*field, "dictionary")
        )
    return of.projection if wire.float32 else of.projection_in(found.info.encoder_type)


def send_top(wire: pb.Projection, count: int, field: FieldPath) -> int | None:
    """How many of the `count` elements of a projected row to send; None for all."""
    if not wire.HasField("send_top"):
        return None
    if wire.send_top == 0:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "send_top is 0; send 1 or more, or leave it unset for all",
            field=(*field, "send_top"),
        )
    return min(wire.send_top, count)


def _activation(wire: pb.Projection, count: int, field: FieldPath) -> Activation:
    match wire.WhichOneof("activation"):
        case "relu":
            return ReLU()
        case "jump_relu":
            at = (*field, "jump_relu", "thresholds")
            if not wire.jump_relu.HasField("thresholds"):
                raise vector_sources.unset(at, f"[{count}]")
            thresholds = vector_sources.numbers(
                wire.jump_relu.thresholds, count, _projected(count), at
            )
            return JumpReLU(thresholds)
        case "top_k":
            if wire.top_k.k == 0:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    "top_k.k is 0, which keeps nothing; send 1 or more",
                    field=(*field, "top_k", "k"),
                )
            return TopK(wire.top_k.k)
        case _:
            return Identity()


def _projected(count: int) -> str:
    return f"a projection onto {count} directions"
