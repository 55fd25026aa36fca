"""Activation rows as messages that every stock client accepts."""

from collections.abc import Iterator

from actserve.v1 import capture_pb2, tensor_pb2
from actserve_server.domain.runs import Rows
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.rpc.tensors import WIRE_ELEMENT_TYPES

MAX_MESSAGE_BYTES = 1 << 20
"""Of an encoded response; a quarter of what gRPC clients accept unless told otherwise."""

_FRAMING_BYTES = 128
"""At most what tags, lengths, indices and the shape take beside positions and elements."""
_POSITION_BYTES = 5
"""At most what a position takes, as a varint."""


def chunks(
    rows: Rows, sequence_index: int, source: ElementType, target: ElementType
) -> Iterator[capture_pb2.ActivationChunk]:
    """Whole rows in chunks of at most 1 MiB each; a row wider than that goes alone."""
    count, width = rows.bits.shape
    row_bytes = width * target.itemsize + _POSITION_BYTES
    step = max(1, (MAX_MESSAGE_BYTES - _FRAMING_BYTES) // row_bytes)
    for start in range(0, count, step):
        bits = convert(rows.bits[start : start + step], source, target)
        yield capture_pb2.ActivationChunk(
            sequence_index=sequence_index,
            site_index=rows.site_index,
            positions=rows.positions[start : start + step].tolist(),
            rows=tensor_pb2.Tensor(
                element_type=WIRE_ELEMENT_TYPES[target],
                shape=bits.shape,
                data=bits.astype(target.storage, copy=False).tobytes(),
            ),
        )
