"""What of the weights to read, from the wire."""

from collections.abc import Sequence
from dataclasses import dataclass

from actserve.v1 import weight_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import HeadMatrix, TokenMatrix
from actserve_server.rpc.requests.heads import check_heads
from actserve_server.rpc.requests.prompt_fields import token_ids
from actserve_server.rpc.requests.required_fields import required

MAX_TOKEN_IDS = 4096
"""Of one call."""

_TOKEN_MATRICES = {pb.TokenMatrix.Value(f"TOKEN_MATRIX_{each.name}"): each for each in TokenMatrix}
_HEAD_MATRICES = {pb.HeadMatrix.Value(f"HEAD_MATRIX_{each.name}"): each for each in HeadMatrix}
WIRE_HEAD_MATRICES = {each: wire for wire, each in _HEAD_MATRICES.items()}


@dataclass(frozen=True, slots=True)
class TokenRowsRequest:
    matrix: TokenMatrix
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeadMatricesRequest:
    layer: int
    heads: tuple[int, ...]
    matrices: tuple[HeadMatrix, ...]


def token_rows(wire: pb.ReadTokenRowsRequest, info: ModelInfo) -> TokenRowsRequest:
    """Rows of tokens."""
    _check_served(info.weights.tokens_unserved, "rows of tokens are", info)
    matrix = _TOKEN_MATRICES.get(wire.matrix)
    if matrix is None:
        raise _unknown(wire.matrix, TokenMatrix, ("matrix",))
    count = len(wire.token_ids)
    if not count:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "no token is named; name at least one", field=("token_ids",)
        )
    if count > MAX_TOKEN_IDS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{count} token ids are named; name at most {MAX_TOKEN_IDS}, and make several calls "
            "for more",
            field=("token_ids",),
            metadata={"token_ids": count, "limit": MAX_TOKEN_IDS},
        )
    return TokenRowsRequest(matrix, token_ids(wire.token_ids, info, ("token_ids",)))


def head_matrices(wire: pb.ReadHeadMatricesRequest, info: ModelInfo) -> HeadMatricesRequest:
    """Matrices of heads of a layer."""
    _check_served(info.weights.heads_unserved, "matrices of heads are", info)
    wanted = required(wire, "layer", "the layer whose heads to read", ())
    layer = Site(HookPoint.Z, wanted).resolve(info.layer_count, ("layer",)).layer
    assert layer is not None
    heads = tuple(wire.heads)
    if not heads:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "no head is named; name at least one", field=("heads",)
        )
    check_heads(heads, info.hook_points[HookPoint.Z].heads, f"layer {layer}", ("heads",))
    return HeadMatricesRequest(layer, heads, _matrices(wire.matrices))


def _matrices(wire: Sequence[int]) -> tuple[HeadMatrix, ...]:
    found: dict[HeadMatrix, int] = {}
    for index, each in enumerate(wire):
        matrix = _HEAD_MATRICES.get(each)
        if matrix is None:
            raise _unknown(each, HeadMatrix, ("matrices", index))
        if matrix in found:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{matrix.name} is named twice, as matrices {found[matrix]} and {index}; name it "
                "once",
                field=("matrices", index),
                metadata={"matrix": matrix.name},
            )
        found[matrix] = index
    return tuple(found) or tuple(HeadMatrix)


def _unknown(
    wire: int, known: type[TokenMatrix] | type[HeadMatrix], field: FieldPath
) -> ActserveError:
    names = ", ".join(each.name for each in known)
    if not wire and field == ("matrix",):
        return ActserveError(
            Reason.FIELD_REQUIRED, f"the matrix is not set; use one of {names}", field=field
        )
    return ActserveError(
        Reason.FIELD_INVALID,
        f"matrix {wire} is unknown; use one of {names}",
        field=field,
        metadata={"matrix": wire},
    )


def _check_served(reason: str, what: str, info: ModelInfo) -> None:
    if reason:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"{what} not served for {info.id}: {reason}",
            metadata={"model": info.id},
        )
