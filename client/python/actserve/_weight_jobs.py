"""Jobs that read weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actserve._checks import INT32, UINT32, described, distinct, integer, several
from actserve._jobs import Job, only
from actserve._weight_calls import HeadMatricesCall, TokenRowsCall
from actserve.errors import InvalidRequest
from actserve.tensors import Float32Array
from actserve.tokens import checked_token, token_id
from actserve.v1 import weight_service_pb2 as pb
from actserve.weights import HeadMatrices

# As many tokens as one call may name.
_TOKENS_PER_CALL = 4096

_TOKEN_MATRICES = {
    "embedding": pb.TOKEN_MATRIX_EMBEDDING,
    "unembedding": pb.TOKEN_MATRIX_UNEMBEDDING,
}


@dataclass(frozen=True)
class WeightJobs:
    """Makes the jobs of one client."""

    model: str
    """Resource name, or empty for the only one."""

    def token_rows(self, matrix: str, token_ids: Any) -> Job[Float32Array]:
        if not isinstance(matrix, str) or matrix not in _TOKEN_MATRICES:
            raise InvalidRequest(
                f"matrix {described(matrix)} does not exist; use one of "
                f"{', '.join(_TOKEN_MATRICES)}",
                reason="FIELD_INVALID",
                path=("matrix",),
            )
        ids = [token_id(checked_token(each)) for each in several(token_ids)]
        if not 0 < len(ids) <= _TOKENS_PER_CALL:
            raise InvalidRequest(
                f"{len(ids)} token ids are named; name 1 to {_TOKENS_PER_CALL} in a call",
                reason="FIELD_INVALID" if ids else "FIELD_REQUIRED",
                path=("token_ids",),
            )
        request = pb.ReadTokenRowsRequest(
            model=self.model, matrix=_TOKEN_MATRICES[matrix], token_ids=ids
        )
        return only("token_rows", partial(TokenRowsCall, request))

    def head_matrices(self, layer: Any, heads: Any) -> Job[list[HeadMatrices]]:
        chosen: Sequence[int] = distinct(heads, "a head", UINT32, "HEAD_OUT_OF_RANGE")
        if not chosen:
            raise InvalidRequest(
                "heads is empty; name at least one, as in heads=[3]",
                reason="FIELD_REQUIRED",
                path=("heads",),
            )
        request = pb.ReadHeadMatricesRequest(
            model=self.model,
            layer=integer(layer, "a layer", INT32, "LAYER_OUT_OF_RANGE"),
            heads=chosen,
        )
        return only("head_matrices", partial(HeadMatricesCall, request))
