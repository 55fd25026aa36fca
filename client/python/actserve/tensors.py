"""Tensors on the wire, and as numpy arrays.

Results are float32 whatever the wire type: bf16 and f16 values are float32 values, so the
conversion is exact. Unknown element types and wrong byte counts are refused, never guessed.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actserve._checks import described
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
    if not isinstance(name, str) or name not in _VALUES:
        raise InvalidRequest(
            f"element type {described(name)} does not exist; use one of {', '.join(_VALUES)}",
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
    try:
        bits = np.frombuffer(tensor.data, storage).reshape(shape)
    except ValueError:  # Of no elements, along more axes or longer ones than numpy has.
        raise BadResponse(
            f"the server sent a tensor of shape {described(list(shape))}, which is no array's"
        ) from None
    if tensor.element_type == tensor_pb2.ELEMENT_TYPE_BF16:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.astype(np.float32)


def as_array(values: Any, name: str, *shapes: tuple[str, ...]) -> Float32Array:
    """A read-only float32 copy of an array that has one of some shapes, given as the names of their
    axes.

    Takes whatever numpy does, and torch tensors. Raises `InvalidRequest` unless it has as many axes
    and every element is finite.
    """
    if hasattr(values, "detach"):
        # torch: bfloat16, CUDA and gradient tensors refuse to become numpy arrays by themselves.
        values = values.detach().cpu().float().numpy()
    try:
        array = np.array(values)
    except ValueError:  # Rows of different lengths.
        array = np.array(values, dtype=object)
    if array.ndim not in map(len, shapes) or array.dtype.kind not in "fiu" or not array.size:
        wanted = " or ".join(f"[{', '.join(axes)}]" for axes in shapes)
        one = array.ndim == 2 and shapes == (("width",),)
        raise InvalidRequest(
            f"{name} must hold real numbers in shape {wanted}, but has shape {list(array.shape)} "
            f"and type {array.dtype}" + ("; take one row, as in rows[-1]" if one else ""),
            reason="TENSOR_WIDTH_MISMATCH",
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InvalidRequest(
            f"{name}{index} is {array[tuple(index)]} in float32; every element must be finite",
            reason="TENSOR_NOT_FINITE",
        )
    array.flags.writeable = False
    return array


def as_vector(values: Any, name: str) -> Float32Array:
    """`as_array` of shape [width]."""
    return as_array(values, name, ("width",))


def as_direction(values: Any, name: str) -> Float32Array:
    """`as_vector`, if it is not zero."""
    return check_independent(as_vector(values, name), name)


def check_nonzero(directions: Float32Array, name: str) -> Float32Array:
    """The array, if no row of it is zero. A vector is one row."""
    zero = ~np.atleast_2d(directions).any(axis=1)
    if zero.any():
        which = name if directions.ndim == 1 else f"{name}[{int(np.argmax(zero))}]"
        raise InvalidRequest(
            f"{which} is zero and so has no direction; give a vector that is not zero",
            reason="TENSOR_DEGENERATE",
        )
    return directions


def check_independent(directions: Float32Array, name: str) -> Float32Array:
    """The array, if no row of it is zero, or a combination of the others. A vector is one row."""
    # In float64, where no square of a float32 overflows or vanishes.
    wide = np.atleast_2d(check_nonzero(directions, name)).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    # Vectors that were parallel before float32 rounded them are so within 1e-7.
    rank = int(np.linalg.matrix_rank(wide / norms, tol=1e-6))
    if rank < len(wide):
        raise InvalidRequest(
            f"{name} are linearly dependent: they span {rank} of {len(wide)} dimensions; give "
            "directions of which none is a combination of the others",
            reason="TENSOR_DEGENERATE",
        )
    return directions


def encode(values: ArrayLike) -> tensor_pb2.Tensor:
    """An array on the wire, as float32."""
    array = np.asarray(values, "<f4")
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=array.shape, data=array.tobytes()
    )
