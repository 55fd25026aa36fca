"""Tensors from the wire: strict, because a wrong guess would steer silently wrong."""

import math

import numpy as np

from actserve.v1 import tensor_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.tensors import ElementType, to_float32

ELEMENT_TYPES = {
    tensor_pb2.ELEMENT_TYPE_F32: ElementType.F32,
    tensor_pb2.ELEMENT_TYPE_F16: ElementType.F16,
    tensor_pb2.ELEMENT_TYPE_BF16: ElementType.BF16,
}
"""An unlisted type is refused, never guessed: the byte count alone cannot tell f16 from bf16."""

WIRE_ELEMENT_TYPES = {domain: wire for wire, domain in ELEMENT_TYPES.items()}


def element_type(wire: int, field: FieldPath) -> ElementType:
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


def vector(tensor: tensor_pb2.Tensor, width: int, of: str, field: FieldPath) -> np.ndarray:
    """The tensor as float32 [width], every element finite; `of` names what is so wide."""
    kind = _checked_size(tensor, field)
    if list(tensor.shape) != [width]:
        raise _wrong_shape(tensor, width, of, f"[{width}]", field)
    return _values(tensor, kind, field)


def matrix(tensor: tensor_pb2.Tensor, width: int, of: str, field: FieldPath) -> np.ndarray:
    """The tensor as float32 [rows, width], at least one row and every element finite."""
    kind = _checked_size(tensor, field)
    if len(tensor.shape) != 2 or tensor.shape[0] == 0 or tensor.shape[1] != width:
        raise _wrong_shape(tensor, width, of, f"[n, {width}], n at least 1", field)
    return _values(tensor, kind, field)


def to_wire(values: np.ndarray) -> tensor_pb2.Tensor:
    """Float32 values as a tensor."""
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32,
        shape=values.shape,
        data=np.ascontiguousarray(values, "<f4").tobytes(),
    )


def _checked_size(tensor: tensor_pb2.Tensor, field: FieldPath) -> ElementType:
    kind = element_type(tensor.element_type, (*field, "element_type"))
    shape = list(tensor.shape)
    wanted = math.prod(shape) * kind.itemsize
    if len(tensor.data) != wanted:
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"shape {shape} of {kind.upper()} needs {wanted} bytes, but data has "
            f"{len(tensor.data)}; send C-contiguous little-endian elements without padding",
            field=(*field, "data"),
            metadata={"bytes": len(tensor.data), "expected_bytes": wanted},
        )
    return kind


def _wrong_shape(
    tensor: tensor_pb2.Tensor, width: int, of: str, wanted: str, field: FieldPath
) -> ActserveError:
    shape = list(tensor.shape)
    return ActserveError(
        Reason.TENSOR_WIDTH_MISMATCH,
        f"the tensor has shape {shape}, but {of} is {width} wide; send shape {wanted}",
        field=(*field, "shape"),
        metadata={"shape": shape, "width": width},
    )


def _values(tensor: tensor_pb2.Tensor, kind: ElementType, field: FieldPath) -> np.ndarray:
    values = to_float32(np.frombuffer(tensor.data, kind.storage), kind).reshape(tensor.shape)
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(map(int, np.unravel_index(np.argmin(finite), finite.shape)))
        index = ", ".join(map(str, first))
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"element {index} of the tensor is {values[first]}; every element must be finite",
            field=(*field, "data"),
            metadata={"index": index},
        )
    return values
