"""Statistics are those of all rows together, however they came."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.readouts.statistics import (
    Memory,
    Moments,
    RowLabels,
    Statistics,
    held_bytes,
)

RNG = np.random.default_rng(0)
# Means that are large beside the deviations, as in a residual stream.
MEANS = np.array([1e4, -3e3, 0, 1, 50, 1e3])
ROWS = (RNG.standard_normal((500, 6)) + MEANS).astype(np.float32)


def cut(at: list[int]) -> list[np.ndarray]:
    return np.split(ROWS, at)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("at", [[], [1], [3, 3, 250], [*range(1, 500)]], ids=len)
def test_blocks_and_parts_give_the_moments_of_all_rows(at: list[int], full: bool) -> None:
    blocks, whole, merged = cut(at), Moments(6, full=full), Moments(6, full=full)
    for block in blocks:
        whole.add(block)
        part = Moments(6, full=full)
        part.add(block)
        merged.merge(part)
    exact = ROWS.astype(np.float64)
    second = np.cov(exact, rowvar=False, bias=True) if full else exact.var(axis=0)
    for moments in (whole, merged):
        assert moments.count == 500
        np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.second, second, rtol=1e-9, atol=1e-9)


def test_rows_are_not_changed() -> None:
    before = ROWS.copy()
    Moments(6, full=True).add(ROWS)
    np.testing.assert_array_equal(ROWS, before)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (RowLabels(), {"": [0, 3, 4]}),
        (RowLabels("x"), {"x": [0, 3, 4]}),
        (RowLabels(None, (("name", np.array([3, 7])),)), {"name": [3]}),
        (
            RowLabels("x", (("name", np.array([3])), ("verb", np.array([0, 3])))),
            {"x": [0, 3, 4], "name": [3], "verb": [0, 3]},
        ),
        (RowLabels(None, (("none", np.array([], np.int64)),)), {"none": []}),
    ],
    ids=["none", "of the whole", "of a position", "of both", "of nothing"],
)
def test_a_row_counts_to_every_label_of_its_position(
    labels: RowLabels, expected: dict[str, list[int]]
) -> None:
    positions = np.array([0, 3, 4])
    assert {label: positions[mask].tolist() for label, mask in labels.of(positions)} == expected


def test_a_label_without_rows_is_not_told() -> None:
    statistics = Statistics()
    statistics.add((0, 0, "x"), np.zeros((0, 4)), full=False)
    assert statistics.moments == {}


def test_what_statistics_take_is_known_before_there_are_any() -> None:
    statistics = Statistics()
    for label in "abc":
        statistics.add((0, 0, label), ROWS, full=True)
        statistics.add((0, 1, label), ROWS[:, :2], full=True)
    taken = sum(each.mean.nbytes + each.deviations.nbytes for each in statistics.moments.values())
    assert taken <= held_bytes([6, 2], 3, full=True) <= taken + 6 * 1024


def test_memory_is_shared_by_calls_and_given_back() -> None:
    memory = Memory(100)
    with memory.held(60):
        with pytest.raises(ActserveError) as caught, memory.held(41):
            pass
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after_s
        with memory.held(40):
            pass
    with memory.held(100):
        pass
