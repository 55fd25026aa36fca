"""Element types keep every bit they can."""

import numpy as np
import pytest
import torch

from actserve_server.domain.tensors import ElementType, convert, rounding, to_float32

TORCH = {
    ElementType.F32: torch.float32,
    ElementType.F16: torch.float16,
    ElementType.BF16: torch.bfloat16,
}
VALUES = np.concatenate(
    [
        np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10.0**exponent
        for exponent in range(-30, 31, 6)
    ]
    + [np.array([0.0, -0.0, 1.0, 65504, 65520, 1e38, 3.4e38, np.inf, -np.inf], np.float32)]
).astype(np.float32)


def as_torch(bits: np.ndarray, element_type: ElementType) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.uint8).copy()).view(TORCH[element_type])


@pytest.mark.parametrize("source", list(ElementType))
@pytest.mark.parametrize("target", list(ElementType))
def test_conversion_rounds_as_torch_does(source: ElementType, target: ElementType) -> None:
    bits = convert(VALUES, ElementType.F32, source)
    expected = as_torch(bits, source).to(TORCH[target])
    converted = convert(bits, source, target)
    assert converted.dtype == target.storage
    assert torch.equal(as_torch(converted, target), expected)


@pytest.mark.parametrize("element_type", list(ElementType))
def test_float32_holds_every_stored_value(element_type: ElementType) -> None:
    bits = convert(VALUES, ElementType.F32, element_type)
    expected = as_torch(bits, element_type).float().numpy()
    np.testing.assert_array_equal(to_float32(bits, element_type), expected)


@pytest.mark.parametrize("target", list(ElementType))
def test_nan_stays_nan(target: ElementType) -> None:
    # The second one's payload lies in the bits that bfloat16 drops.
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(to_float32(convert(nans, ElementType.F32, target), target)).all()


def test_rows_of_a_matrix_convert_as_a_whole() -> None:
    matrix = VALUES[:1000].reshape(10, 100)[::2]
    converted = convert(matrix, ElementType.F32, ElementType.BF16)
    assert converted.shape == (5, 100)


@pytest.mark.parametrize("element_type", list(ElementType))
def test_rounding_moves_a_value_by_as_much_as_it_may_and_no_more(element_type: ElementType) -> None:
    exponents = np.arange(-14, 15)  # Those of ordinary numbers of float16.
    ulps = 2.0 ** (exponents + 1 - element_type.significant_bits)
    values = 2.0**exponents * np.random.default_rng(0).uniform(1, 2, (1000, len(exponents)))
    exact = values.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(
        rounding(exact, element_type), np.broadcast_to(ulps / 2, exact.shape)
    )
    moved = np.abs(
        to_float32(convert(exact.astype(np.float32), ElementType.F32, element_type), element_type)
        - exact
    )
    assert (moved <= ulps / 2).all()
    if element_type is not ElementType.F32:
        assert (moved.max(axis=0) > 0.49 * ulps).all()
