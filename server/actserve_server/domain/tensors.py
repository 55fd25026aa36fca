"""Element types of activations, as numpy sees them.

numpy has no bfloat16, so rows in it travel as uint16 with `ElementType.BF16` beside them: the bits
are the high half of a binary32.
"""

from enum import StrEnum

import numpy as np


class ElementType(StrEnum):
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def storage(self) -> np.dtype:
        """The little-endian numpy type that holds one element's bits."""
        return _STORAGE[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage.itemsize

    @property
    def significant_bits(self) -> int:
        """Of a number, the leading one among them."""
        return _SIGNIFICANT_BITS[self]


_STORAGE = {
    ElementType.F32: np.dtype("<f4"),
    ElementType.F16: np.dtype("<f2"),
    ElementType.BF16: np.dtype("<u2"),
}
_SIGNIFICANT_BITS = {ElementType.F32: 24, ElementType.F16: 11, ElementType.BF16: 8}
_LEAST_ROUNDING = {
    ElementType.F32: 2.0**-126,
    ElementType.F16: 2.0**-25,
    ElementType.BF16: 2.0**-126,
}
"""Of the smallest numbers: some processors make zero of those below 2^-126."""


def to_float32(bits: np.ndarray, element_type: ElementType) -> np.ndarray:
    """The values of stored elements, exactly, as float32."""
    if element_type is ElementType.BF16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32, copy=False)


def rounding(values: np.ndarray, element_type: ElementType) -> np.ndarray:
    """How far rounding to an element type may move each value: half a unit in its last place,
    float64."""
    _, exponents = np.frexp(values)
    half = np.ldexp(0.5, exponents - element_type.significant_bits)
    return np.where(values == 0, 0, half).clip(_LEAST_ROUNDING[element_type])


def convert(bits: np.ndarray, source: ElementType, target: ElementType) -> np.ndarray:
    """Stored elements of `source` as stored elements of `target`, rounded to nearest even."""
    if source is target:
        return bits
    values = to_float32(bits, source)
    if target is ElementType.F32:
        return values
    if target is ElementType.F16:
        # Values beyond 65504 become infinite, as the contract says.
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    return _round_to_bf16(values)


def held_bytes(count: int, element_type: ElementType) -> int:
    """Of so many elements, where all that is held begins at a whole float32."""
    return -(-count * element_type.itemsize // 4) * 4


def rounded(values: np.ndarray, element_type: ElementType) -> np.ndarray:
    """Float32 values as float32 again, each rounded to an element type, to nearest even."""
    return to_float32(convert(values, ElementType.F32, element_type), element_type)


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding could carry a NaN's payload into infinity; keep it a quiet NaN.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
