"""Projections from the wire."""

from actserve.v1 import capture_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.readouts.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.rpc import tensors


def projection(
    wire: pb.Projection, sites: tuple[Site, ...], info: ModelInfo, field: str
) -> Projection:
    """The projection of rows of all these sites, with every tensor as the readout needs it."""
    at = f"{field}.directions"
    if not wire.HasField("directions"):
        raise _required(at, f"send a tensor of shape [directions, {info.at(sites[0]).width}]")
    width = info.at(sites[0]).width
    directions = tensors.matrix(wire.directions, width, f"a row of {sites[0]}", at)
    for site in sites:
        if info.at(site).width != width:
            raise ActserveError(
                Reason.TENSOR_WIDTH_MISMATCH,
                f"the directions are {width} wide, but a row of {site} is "
                f"{info.at(site).width} wide; capture sites of other widths in another call",
                field=f"{at}.shape",
                metadata={"site": site, "width": info.at(site).width},
            )
    count = len(directions)
    bias = None
    if wire.HasField("bias"):
        bias = tensors.vector(wire.bias, count, _projected(count), f"{field}.bias")
    return Projection(directions, bias, _activation(wire, count, field))


def send_top(wire: pb.Projection, count: int, field: str) -> int | None:
    """How many of the `count` elements of a projected row to send; None for all."""
    if not wire.HasField("send_top"):
        return None
    if wire.send_top == 0:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "send_top is 0; send 1 or more, or leave it unset for all",
            field=f"{field}.send_top",
        )
    return min(wire.send_top, count)


def _activation(wire: pb.Projection, count: int, field: str) -> Activation:
    match wire.WhichOneof("activation"):
        case "relu":
            return ReLU()
        case "jump_relu":
            at = f"{field}.jump_relu.thresholds"
            if not wire.jump_relu.HasField("thresholds"):
                raise _required(at, f"send a tensor of shape [{count}]")
            return JumpReLU(tensors.vector(wire.jump_relu.thresholds, count, _projected(count), at))
        case "top_k":
            if wire.top_k.k == 0:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    "top_k.k is 0, which keeps nothing; send 1 or more",
                    field=f"{field}.top_k.k",
                )
            return TopK(wire.top_k.k)
        case _:
            return Identity()


def _projected(count: int) -> str:
    return f"a projection onto {count} directions"


def _required(field: str, fix: str) -> ActserveError:
    return ActserveError(Reason.FIELD_REQUIRED, f"{field} is not set; {fix}", field=field)
