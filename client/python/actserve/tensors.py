"""Tensors on the wire, and as numpy arrays.

Results are float32 whatever the wire type: bf16 and f16 values are float32 values, so the
conversion is exact. Unknown element types and wrong byte counts are refused, never guessed.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve.errors import BadResponse, InvalidRequest
from actserve.v1 import tensor_pb2

Float32Array: TypeAlias = NDArray[np.float32]
ElementType: TypeAlias = Literal["f32", "f16", "bf16"]
"""How one number is stored: IEEE 754 binary32 or binary16, or bfloat16."""

# Little-endian. numpy has no bfloat16; its bits are the high half of a binary32.
_STORAGE: dict[int, np.dtype[Any]] = {
    tensor_pb2.ELEMENT_TYPE_F32: np.dtype("<f4"),
    tensor_pb2.ELEMENT_TYPE_F16: np.dtype("<f2"),
    tensor_pb2.ELEMENT_TYPE_BF16: np.dtype("<u2"),
}
_VALUES: dict[str, tensor_pb2.ElementType] = {
    "f32": tensor_pb2.ELEMENT_TYPE_F32,
    "f16": tensor_pb2.ELEMENT_TYPE_F16,
    "bf16": tensor_pb2.ELEMENT_TYPE_BF16,
}
_NAMES: dict[int, str] = {value: name for name, value in _VALUES.items()}


def element_type_to_proto(name: ElementType | None) -> tensor_pb2.ElementType:
    """The wire type of a name; None is the model's own."""
    if name is None:
        return tensor_pb2.ELEMENT_TYPE_UNSPECIFIED
    if name not in _VALUES:
        raise InvalidRequest(
            f"element type {name!r} does not exist; use one of {', '.join(_VALUES)}",
            reason="TENSOR_ELEMENT_TYPE_UNKNOWN",
        )
    return _VALUES[name]


def element_type_name(value: int) -> str:
    """The name of a wire type; its number if this client does not know it."""
    return _NAMES.get(value, str(value))


def decode(tensor: tensor_pb2.Tensor) -> Float32Array:
    """The values of a tensor as a new, writable float32 array of its shape.

    Raises `BadResponse` if the element type is unknown or the byte count is not what the shape
    needs.
    """
    storage = _STORAGE.get(tensor.element_type)
    if storage is None:
        raise BadResponse(
            f"the server sent element type {tensor.element_type}, which this client does not "
            "know; upgrade the client"
        )
    shape = tuple(tensor.shape)
    expected = math.prod(shape) * storage.itemsize
    if len(tensor.data) != expected:
        raise BadResponse(
            f"the server sent {len(tensor.data)} bytes for a tensor of shape {list(shape)}, "
            f"which has {expected}"
        )
    bits = np.frombuffer(tensor.data, storage).reshape(shape)
    if tensor.element_type == tensor_pb2.ELEMENT_TYPE_BF16:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.astype(np.float32)


def as_vector(values: Any) -> Float32Array:
    """A read-only float32 copy of a vector, shape [width].

    Takes whatever numpy does, and torch tensors. Raises `InvalidRequest` unless it has one axis
    and every element is finite.
    """
    if hasattr(values, "detach"):
        # torch: bfloat16, CUDA and gradient tensors refuse to become numpy arrays by themselves.
        values = values.detach().cpu().float().numpy()
    vector = np.array(values)
    if vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise InvalidRequest(
            f"a steering vector has shape [width] and real numbers, but this one has shape "
            f"{list(vector.shape)} and type {vector.dtype}",
            reason="TENSOR_WIDTH_MISMATCH",
        )
    with np.errstate(over="ignore"):
        vector = vector.astype(np.float32)
    if not np.isfinite(vector).all():
        index = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise InvalidRequest(
            f"element {index} of the steering vector is {vector[index]} in float32; every element "
            "must be finite",
            reason="TENSOR_NOT_FINITE",
        )
    vector.flags.writeable = False
    return vector


def encode(vector: Float32Array) -> tensor_pb2.Tensor:
    """A float32 array on the wire."""
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32,
        shape=vector.shape,
        data=vector.astype("<f4", copy=False).tobytes(),
    )
