"""The largest values of a row, in an order that leaves nothing to chance."""

import math

import numpy as np
import pytest

from actserve_server.domain import blocks
from actserve_server.domain.ranking import largest

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("row", "count", "columns"),
    [
        ([1, 3, 2], 2, [1, 2]),
        ([1, 3, 2], 3, [1, 2, 0]),
        ([5], 1, [0]),
        ([2, 2, 2, 2], 2, [0, 1]),
        ([1, 2, 1, 2, 1], 3, [1, 3, 0]),
        ([-1, -3, -2], 2, [0, 2]),
        ([0.0, -0.0, 0.0, -1], 3, [0, 1, 2]),
        ([-0.0, 0.0], 2, [0, 1]),
        ([-INF, INF, 0], 3, [1, 2, 0]),
        ([-INF, -INF], 1, [0]),
        ([1, NAN, INF, NAN], 3, [1, 3, 2]),
        ([1, -NAN, INF], 2, [1, 2]),
        ([3e38, -3e38, 1e-45, -1e-45, 0], 5, [0, 2, 4, 3, 1]),
    ],
)
def test_larger_comes_first_and_of_equals_the_lower_column(
    row: list[float], count: int, columns: list[int]
) -> None:
    values = np.array([row], np.float32)
    found, top = largest(values, count)
    assert found.tolist() == [columns]
    np.testing.assert_array_equal(top, values[:, columns])


@pytest.mark.parametrize(
    ("shape", "count", "result"),
    [
        ((0, 5), 2, (0, 2)),
        ((3, 5), 9, (3, 5)),
        ((3, 0), 2, (3, 0)),
        ((3, 5), 0, (3, 0)),
    ],
)
def test_a_row_gives_no_more_than_it_has(
    shape: tuple[int, int], count: int, result: tuple[int, int]
) -> None:
    columns, values = largest(np.ones(shape, np.float32), count)
    assert columns.shape == values.shape == result
    assert (columns.dtype, values.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_it_is_a_stable_sort_whatever_the_block(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, width, count = rng.integers(1, 12, 3)
        values = rng.integers(-3, 4, (rows, width)).astype(np.float32)  # Full of ties.
        expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
        columns, top = largest(values, int(count))
        np.testing.assert_array_equal(columns, expected)
        np.testing.assert_array_equal(top, np.take_along_axis(values, expected, axis=1))
