"""Many rows to one, as they come."""

import tracemalloc

import numpy as np
import pytest

from actserve_server.readouts.reductions import Reduction

ROWS = np.array([[1, -5, 2], [4, -7, 2], [1, 0, -1]], np.float32)


def _reduce(reduction: Reduction, blocks: list[np.ndarray]) -> np.ndarray | None:
    reducer = reduction.start()
    for block in blocks:
        reducer.add(block)
    return reducer.result()


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction.LAST, [1, 0, -1]),
        (Reduction.MEAN, [2, -4, 1]),
        (Reduction.MAX, [4, 0, 2]),
    ],
)
def test_a_sequence_becomes_one_row(reduction: Reduction, expected: list[float]) -> None:
    row = _reduce(reduction, [ROWS])
    assert row is not None
    assert (row.tolist(), row.dtype) == (expected, np.float32)


@pytest.mark.parametrize("reduction", list(Reduction))
def test_one_row_is_its_own_reduction(reduction: Reduction) -> None:
    row = _reduce(reduction, [ROWS[:1]])
    np.testing.assert_array_equal(row, ROWS[0])


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("blocks", [[], [ROWS[:0]], [ROWS[:0], ROWS[:0]]])
def test_no_row_has_no_reduction(reduction: Reduction, blocks: list[np.ndarray]) -> None:
    assert _reduce(reduction, blocks) is None


@pytest.mark.parametrize("reduction", list(Reduction))
def test_where_the_blocks_are_cut_changes_no_bit(reduction: Reduction) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((50, 33)) * 10.0 ** rng.integers(-6, 7, (50, 33))).astype("f4")
    whole = _reduce(reduction, [rows])
    for _ in range(20):
        cuts = np.sort(rng.integers(0, 51, rng.integers(0, 9)))
        np.testing.assert_array_equal(_reduce(reduction, np.split(rows, cuts)), whole)


def test_a_mean_loses_nothing_beside_a_large_row() -> None:
    # In float32 each of the small rows would vanish in the sum.
    rows = np.ones((100_001, 1), np.float32)
    rows[0] = 2.0**25
    row = _reduce(Reduction.MEAN, [rows])
    assert row == np.float32((2.0**25 + 100_000) / 100_001)


def test_a_sum_beyond_float32_still_has_its_mean() -> None:
    rows = np.full((4, 1), 3e38, np.float32)
    assert _reduce(Reduction.MEAN, [rows]) == np.float32(3e38)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction.LAST, [0, -np.inf, 0]),
        (Reduction.MEAN, [np.inf, -np.inf, np.nan]),
        (Reduction.MAX, [np.inf, -np.inf, np.nan]),
    ],
)
def test_infinities_stay_and_nan_is_not_hidden(reduction: Reduction, expected: list[float]) -> None:
    first = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    last = np.array([[0, -np.inf, 0]], np.float32)
    np.testing.assert_array_equal(_reduce(reduction, [first, last]), np.array(expected, "f4"))


@pytest.mark.parametrize("reduction", list(Reduction))
def test_only_the_running_state_is_kept(reduction: Reduction) -> None:
    reducer = reduction.start()
    tracemalloc.start()
    for _ in range(20):
        reducer.add(np.ones((1000, 50), np.float32))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000


@pytest.mark.parametrize("reduction", list(Reduction))
def test_a_result_is_not_changed_by_what_comes_after(reduction: Reduction) -> None:
    reducer = reduction.start()
    block = ROWS.copy()
    reducer.add(block)
    row = reducer.result()
    assert row is not None
    before = row.copy()
    block[:] = 100
    reducer.add(ROWS + 10)
    np.testing.assert_array_equal(row, before)
