"""Calls that read weights: rows and matrices, checked on arrival and joined once."""

from typing import Any

import numpy as np

from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse
from actserve.tensors import Float32Array, decode
from actserve.v1 import weight_service_pb2 as pb
from actserve.weights import HeadMatrices


class TokenRowsCall:
    """Rows of some tokens."""

    method = "ReadTokenRows"

    def __init__(self, request: pb.ReadTokenRowsRequest) -> None:
        self.request = request
        self._width = 0
        self._rows = _Rows("rows of tokens")
        self._order = EventOrder()

    def read(self, response: pb.ReadTokenRowsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._width = response.started.width
            case "rows":
                self._rows.add(response.rows.first_index, decode(response.rows.rows))
            case _:  # The last, or one of a newer server, which the contract says to skip.
                pass

    def result(self) -> Float32Array:
        check_complete(self._order.finished, (), 0, "")
        return self._rows.joined(len(self.request.token_ids), self._width)


class HeadMatricesCall:
    """All matrices of some heads of a layer."""

    method = "ReadHeadMatrices"

    def __init__(self, request: pb.ReadHeadMatricesRequest) -> None:
        self.request = request
        self._started = pb.ReadHeadMatricesStarted()
        self._rows = {
            (head, matrix): _Rows(f"the {name} matrix of head {head}")
            for head in request.heads
            for name, matrix in _MATRICES.items()
        }
        self._order = EventOrder()

    def read(self, response: pb.ReadHeadMatricesResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._started = response.started
                told = len(self._started.key_value_heads)
                if told != len(self.request.heads):
                    raise BadResponse(
                        f"the server opened {told} heads, not the {len(self.request.heads)} that "
                        "were asked for"
                    )
            case "rows":
                sent = response.rows
                if (sent.head, sent.matrix) not in self._rows:
                    raise BadResponse(
                        f"the server sent matrix {sent.matrix} of head {sent.head} unasked"
                    )
                self._rows[sent.head, sent.matrix].add(sent.first_row, decode(sent.rows))
            case _:  # The last, or one of a newer server, which the contract says to skip.
                pass

    def result(self) -> list[HeadMatrices]:
        check_complete(self._order.finished, (), 0, "")
        told = self._started.key_value_heads
        return [
            self._head(head, group) for head, group in zip(self.request.heads, told, strict=True)
        ]

    def _head(self, head: int, key_value_head: int) -> HeadMatrices:
        width, head_width = self._started.width, self._started.head_width
        shapes = {
            name: (head_width, width) if name == "output" else (width, head_width)
            for name in _MATRICES
        }
        matrices: dict[str, Any] = {
            name: self._rows[head, matrix].joined(*shapes[name])
            for name, matrix in _MATRICES.items()
        }
        return HeadMatrices(self._started.layer, head, key_value_head, **matrices)


_MATRICES = {
    "query": pb.HEAD_MATRIX_QUERY,
    "key": pb.HEAD_MATRIX_KEY,
    "value": pb.HEAD_MATRIX_VALUE,
    "output": pb.HEAD_MATRIX_OUTPUT,
}


class _Rows:
    """The rows of one matrix, which come in order."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._blocks: list[Float32Array] = []
        self._received = 0

    def add(self, first: int, rows: Float32Array) -> None:
        if first != self._received or rows.ndim != 2:
            raise BadResponse(
                f"the server sent {self._what} in shape {list(rows.shape)} from {first} on, but "
                f"those from {self._received} on come next"
            )
        self._blocks.append(rows)
        self._received += len(rows)

    def joined(self, rows: int, columns: int) -> Float32Array:
        """All of them, if they have this shape."""
        found = {block.shape[1] for block in self._blocks}
        if self._received != rows or found != {columns}:
            raise BadResponse(
                f"the server sent {self._received} {self._what} of width {sorted(found)}, not "
                f"{rows} of width {columns}"
            )
        return np.concatenate(self._blocks)
