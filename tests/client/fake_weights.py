"""The weights of the made-up model, each of which tells where it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from actserve.v1 import tensor_pb2
from actserve.v1 import weight_service_pb2 as pb

from .fake_readouts import LAYERS, WIDTH, tensor

HEAD_WIDTH = 2
NAMES = {
    pb.HEAD_MATRIX_QUERY: "query",
    pb.HEAD_MATRIX_KEY: "key",
    pb.HEAD_MATRIX_VALUE: "value",
    pb.HEAD_MATRIX_OUTPUT: "output",
}
ROWS_AT_ONCE = 2


def token_row(matrix: str, token_id: int) -> np.ndarray:
    return np.array([len(matrix), token_id, *[0.5] * (WIDTH - 2)], np.float32)


def head_matrix(head: int, name: str) -> np.ndarray:
    shape = (HEAD_WIDTH, WIDTH) if name == "output" else (WIDTH, HEAD_WIDTH)
    return (100 * head + 10 * len(name) + np.arange(WIDTH * HEAD_WIDTH)).reshape(shape)


def told(request: Any) -> Iterator[Any]:
    """The answer to a reading, a few rows at a time."""
    if isinstance(request, pb.ReadTokenRowsRequest):
        return _token_rows(request)
    return _head_matrices(request)


def _token_rows(request: pb.ReadTokenRowsRequest) -> Iterator[pb.ReadTokenRowsResponse]:
    name = "embedding" if request.matrix == pb.TOKEN_MATRIX_EMBEDDING else "unembedding"
    yield pb.ReadTokenRowsResponse(
        started=pb.ReadTokenRowsStarted(element_type=tensor_pb2.ELEMENT_TYPE_F32, width=WIDTH)
    )
    rows = [token_row(name, each) for each in request.token_ids]
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = tensor(rows[first : first + ROWS_AT_ONCE])
        yield pb.ReadTokenRowsResponse(rows=pb.TokenRows(first_index=first, rows=part))
    yield pb.ReadTokenRowsResponse(finished=pb.ReadTokenRowsFinished())


def _head_matrices(request: pb.ReadHeadMatricesRequest) -> Iterator[pb.ReadHeadMatricesResponse]:
    yield pb.ReadHeadMatricesResponse(
        started=pb.ReadHeadMatricesStarted(
            element_type=tensor_pb2.ELEMENT_TYPE_F32,
            layer=request.layer % LAYERS,
            width=WIDTH,
            head_width=HEAD_WIDTH,
            key_value_heads=[head // 2 for head in request.heads],
        )
    )
    for head in request.heads:
        for matrix, name in NAMES.items():
            rows = head_matrix(head, name)
            for first in range(0, len(rows), ROWS_AT_ONCE):
                part = tensor(rows[first : first + ROWS_AT_ONCE])
                yield pb.ReadHeadMatricesResponse(
                    rows=pb.HeadMatrixRows(head=head, matrix=matrix, first_row=first, rows=part)
                )
    yield pb.ReadHeadMatricesResponse(finished=pb.ReadHeadMatricesFinished())
