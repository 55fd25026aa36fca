"""Vectors are computed row by row, and what points nowhere is refused."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.steering.arithmetic import combine

RNG = np.random.default_rng(3)
A, B, C = (RNG.normal(size=(2, 8)).astype(np.float32) for _ in range(3))


def test_terms_are_added_with_their_coefficients() -> None:
    found = combine([(2.0, A), (-0.5, B)])
    np.testing.assert_allclose(found, 2 * A - 0.5 * B, rtol=1e-6)
    assert found.dtype == np.float32


def test_one_vector_by_itself_is_the_same_bits() -> None:
    np.testing.assert_array_equal(combine([(1.0, A)]), A)


def test_what_is_left_out_is_orthogonal_to_each_and_the_rest_stays() -> None:
    found = combine([(1.0, A)], [B, C])
    for row, start, *out in zip(found, A, B, C, strict=True):
        np.testing.assert_allclose([row @ each for each in out], 0, atol=1e-5)
        # What was taken away is made of these alone.
        span = np.linalg.qr(np.stack(out).astype(np.float64).T)[0]
        taken = start - row
        np.testing.assert_allclose(span @ (span.T @ taken), taken, atol=1e-6)


def test_a_long_part_along_what_is_left_out_is_gone_but_for_rounding() -> None:
    found = combine([(1e6, B), (1.0, A)], [B])
    for row, out in zip(found.astype(np.float64), B.astype(np.float64), strict=True):
        assert abs(row @ out) <= 1e-6 * np.linalg.norm(row) * np.linalg.norm(out)


def test_each_row_is_scaled_to_the_norm() -> None:
    np.testing.assert_allclose(
        np.linalg.norm(combine([(3.0, A)], norm=2.5), axis=1), 2.5, rtol=1e-6
    )


REFUSED = {
    "terms that cancel": ([(1.0, A), (-1.0, A)], (), "TENSOR_DEGENERATE", "terms"),
    "a row that cancels": (
        [(1.0, A), (-1.0, np.stack([B[0], A[1]]))],
        (),
        "TENSOR_DEGENERATE",
        "terms",
    ),
    "all taken out": ([(1.0, A), (2.0, B)], (A, B), "TENSOR_DEGENERATE", "terms"),
    "a coefficient of zero": ([(0.0, A)], (), "TENSOR_DEGENERATE", "terms"),
    "parallel to leave out": ([(1.0, A)], (B, -2 * B), "TENSOR_DEGENERATE", "without"),
    "a sum of others to leave out": ([(1.0, A)], (B, C, B + C), "TENSOR_DEGENERATE", "without"),
    "more to leave out than wide": ([(1.0, A)], [A] * 9, "TENSOR_DEGENERATE", "without"),
    "too large for float32": ([(1e38, 1e3 * A)], (), "TENSOR_NOT_FINITE", "terms"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_direction_or_no_float32_is_refused(case: str) -> None:
    terms, without, reason, field = REFUSED[case]
    with pytest.raises(ActserveError) as refused:
        combine(terms, without)
    assert refused.value.reason is Reason[reason]
    assert refused.value.field == (field,)
