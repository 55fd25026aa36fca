"""Vectors from the wire: strict, because a wrong guess would steer silently wrong."""

import math

import numpy as np

from actserve.v1 import tensor_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tensors import ElementType, to_float32

ELEMENT_TYPES = {
    tensor_pb2.ELEMENT_TYPE_F32: ElementType.F32,
    tensor_pb2.ELEMENT_TYPE_F16: ElementType.F16,
    tensor_pb2.ELEMENT_TYPE_BF16: ElementType.BF16,
}
"""An unlisted type is refused, never guessed: the byte count alone cannot tell f16 from bf16."""

WIRE_ELEMENT_TYPES = {domain: wire for wire, domain in ELEMENT_TYPES.items()}


def element_type(wire: int, field: str) -> ElementType:
    """The element type of a wire value."""
    known = ELEMENT_TYPES.get(wire)  # pyright: ignore[reportArgumentType]
    if known is None:
        names = ", ".join(t.upper() for t in ElementType)
        raise ActserveError(
            Reason.TENSOR_ELEMENT_TYPE_UNKNOWN,
            f"element type {wire} is not set or unknown; use one of {names}",
            field=field,
            metadata={"element_type": wire},
        )
    return known


def vector(tensor: tensor_pb2.Tensor, width: int, field: str) -> np.ndarray:
    """The tensor as float32 [width], every element finite."""
    kind = element_type(tensor.element_type, f"{field}.element_type")
    shape = list(tensor.shape)
    wanted = math.prod(shape) * kind.itemsize
    if len(tensor.data) != wanted:
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"shape {shape} of {kind.upper()} needs {wanted} bytes, but data has "
            f"{len(tensor.data)}; send C-contiguous little-endian elements without padding",
            field=f"{field}.data",
            metadata={"bytes": len(tensor.data), "expected_bytes": wanted},
        )
    if shape != [width]:
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"the vector has shape {shape}, but this model's sites are {width} wide; send "
            f"shape [{width}]",
            field=f"{field}.shape",
            metadata={"shape": shape, "width": width},
        )
    values = to_float32(np.frombuffer(tensor.data, kind.storage), kind)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"element {first} of the vector is {values[first]}; every element must be finite",
            field=f"{field}.data",
            metadata={"index": first},
        )
    return values
