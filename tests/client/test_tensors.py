"""Every element type decodes to exactly the float32 it stands for."""

import struct

import numpy as np
import pytest

import actserve
from actserve.tensors import decode
from actserve.v1 import tensor_pb2

STORAGE = {
    tensor_pb2.ELEMENT_TYPE_F32: np.uint32,
    tensor_pb2.ELEMENT_TYPE_F16: np.uint16,
    tensor_pb2.ELEMENT_TYPE_BF16: np.uint16,
}

# (bits, value)
KNOWN = {
    tensor_pb2.ELEMENT_TYPE_F32: [
        (0x3FC00000, 1.5),
        (0x80000000, -0.0),
        (0x00000001, 2.0**-149),
        (0x7F800000, float("inf")),
        (0xFF800000, float("-inf")),
        (0x7FC00000, float("nan")),
    ],
    tensor_pb2.ELEMENT_TYPE_F16: [
        (0x3E00, 1.5),
        (0x8000, -0.0),
        (0x0001, 2.0**-24),
        (0x7BFF, 65504.0),
        (0x7C00, float("inf")),
        (0xFC00, float("-inf")),
        (0x7E00, float("nan")),
    ],
    tensor_pb2.ELEMENT_TYPE_BF16: [
        (0x3FC0, 1.5),
        (0x8000, -0.0),
        (0x0001, 2.0**-133),
        (0x7F7F, 3.3895313892515355e38),
        (0x7F80, float("inf")),
        (0xFF80, float("-inf")),
        (0x7FC0, float("nan")),
    ],
}


def tensor(element_type: tensor_pb2.ElementType, bits: np.ndarray) -> tensor_pb2.Tensor:
    little_endian = bits.astype(bits.dtype.newbyteorder("<"))
    return tensor_pb2.Tensor(
        element_type=element_type, shape=bits.shape, data=little_endian.tobytes()
    )


@pytest.mark.parametrize("element_type", KNOWN, ids=tensor_pb2.ElementType.Name)
def test_known_bits_decode_to_their_values(element_type: tensor_pb2.ElementType) -> None:
    bits, values = zip(*KNOWN[element_type], strict=True)
    decoded = decode(tensor(element_type, np.array(bits, STORAGE[element_type])))
    assert decoded.dtype == np.float32
    assert [struct.pack("<f", x) for x in decoded] == [struct.pack("<f", x) for x in values]


@pytest.mark.parametrize("element_type", KNOWN, ids=tensor_pb2.ElementType.Name)
def test_a_decoded_array_is_the_callers_own(element_type: tensor_pb2.ElementType) -> None:
    decoded = decode(tensor(element_type, np.zeros(2, STORAGE[element_type])))
    decoded += 1
    assert decoded.tolist() == [1, 1]


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_a_wrong_byte_count_is_refused(size: int) -> None:
    wrong = tensor_pb2.Tensor(element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=[2], data=bytes(size))
    with pytest.raises(actserve.BadResponse, match=rf"sent {size} bytes.*shape \[2\].*has 8"):
        decode(wrong)


@pytest.mark.parametrize("element_type", [0, 99])
def test_an_unknown_element_type_is_refused(element_type: int) -> None:
    unknown = tensor_pb2.Tensor(element_type=element_type, shape=[0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(actserve.BadResponse, match=f"element type {element_type}"):
        decode(unknown)


@pytest.mark.parametrize(
    "shape", [(0, *[(1 << 32) - 1] * 3), (0,) * 80], ids=["long", "of many axes"]
)
def test_a_shape_of_no_elements_that_no_array_has_is_refused(shape: tuple[int, ...]) -> None:
    told = tensor_pb2.Tensor(element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=shape)
    with pytest.raises(actserve.BadResponse, match="no array"):
        decode(told)
