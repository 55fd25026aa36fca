"""Operations do what their formulas say, and keep the properties that people rely on."""

from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
    relative_change,
    unit,
)
from tests.contract.formulas import Formula, formulas

WIDTH = 24
RNG = np.random.default_rng(7)
ROWS = (RNG.standard_normal((50, WIDTH)) * RNG.uniform(0.01, 100, (50, 1))).astype(np.float32)
V, W = RNG.standard_normal((2, WIDTH)).astype(np.float32)
DIRECTIONS = RNG.standard_normal((5, WIDTH)).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to float32's rounding of the rows."""
    scale = np.linalg.norm(expected, axis=1, keepdims=True) + np.linalg.norm(ROWS, axis=1)[:, None]
    assert actual.dtype == np.float32
    assert (np.abs(actual - expected) <= 2e-6 * scale).all()


@pytest.mark.parametrize("formula", formulas(WIDTH), ids=str)
def test_an_operation_is_its_formula(formula: Formula) -> None:
    before = ROWS.copy()
    close(formula.domain.apply(ROWS), formula.of(ROWS.astype(np.float64)))
    np.testing.assert_array_equal(ROWS, before, "the rows given were changed")


@pytest.mark.parametrize("formula", formulas(WIDTH), ids=str)
def test_a_row_does_not_depend_on_its_neighbours(formula: Formula) -> None:
    together = formula.domain.apply(ROWS)
    alone = np.concatenate([formula.domain.apply(row[None]) for row in ROWS])
    close(alone, together)


@pytest.mark.parametrize(
    "operation",
    [
        Ablate(V),
        Project(DIRECTIONS),
        Project(DIRECTIONS, away=True),
        Clamp(V, -0.5, 0.5),
        Clamp(V, maximum=-1.0),
        Clamp(V, 3.0, 3.0),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_doing_it_twice_is_doing_it_once(operation: Operation) -> None:
    once = operation.apply(ROWS)
    close(operation.apply(once), once)


@pytest.mark.parametrize("operation", [Swap(V, W), Ablate(V, 2.0)], ids=["swap", "reflect"])
def test_doing_it_twice_undoes_it(operation: Operation) -> None:
    close(operation.apply(operation.apply(ROWS)), ROWS)


def test_what_is_kept_and_what_is_removed_make_up_the_row() -> None:
    onto, away = Project(DIRECTIONS), Project(DIRECTIONS, away=True)
    close(onto.apply(ROWS) + away.apply(ROWS), ROWS)


def test_projecting_onto_a_whole_basis_changes_nothing() -> None:
    close(Project(RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32)).apply(ROWS), ROWS)


def test_projecting_away_from_one_direction_is_ablating_it() -> None:
    close(Project(V[None], away=True).apply(ROWS), Ablate(V).apply(ROWS))


def test_an_ablated_direction_is_gone() -> None:
    close((Ablate(V).apply(ROWS) @ unit(V))[:, None], np.zeros((len(ROWS), 1)))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (None, 0.5), (-0.5, None), (2.0, 2.0)])
def test_a_clamped_component_is_within_its_bounds_and_moves_no_further_than_it_must(
    low: float | None, high: float | None
) -> None:
    before, after = ROWS @ unit(V), Clamp(V, low, high).apply(ROWS) @ unit(V)
    close(after[:, None], np.clip(before, low, high)[:, None])
    inside = before == np.clip(before, low, high)
    np.testing.assert_array_equal(Clamp(V, low, high).apply(ROWS)[inside], ROWS[inside])


def test_a_relative_addition_has_the_size_of_its_share_of_the_row() -> None:
    moved = Add(V, 0.3, relative=True).apply(ROWS) - ROWS
    close(np.linalg.norm(moved, axis=1, keepdims=True), 0.3 * np.linalg.norm(ROWS, axis=1)[:, None])


@pytest.mark.parametrize("scale", [3.0, 1e-30, 1e30])
@pytest.mark.parametrize(
    "operation",
    [
        Ablate(V),
        Clamp(V, -0.5, 0.5),
        Swap(V, W),
        Project(DIRECTIONS),
        Add(V, relative=True),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_only_the_direction_of_a_direction_matters(operation: Operation, scale: float) -> None:
    # Squares of these scales overflow or vanish in float32.
    match operation:
        case Add():
            scaled = replace(operation, vector=operation.vector * np.float32(scale))
        case Swap():
            scaled = replace(operation, first=operation.first * np.float32(scale))
        case Project():
            factors = np.ones((len(DIRECTIONS), 1), np.float32)
            factors[2] = scale
            scaled = Project(DIRECTIONS * factors)
        case Ablate() | Clamp():
            scaled = replace(operation, direction=operation.direction * np.float32(scale))
        case _:
            raise AssertionError(operation)
    close(scaled.apply(ROWS), operation.apply(ROWS))


def test_rows_are_replaced_one_by_one_or_all_by_one() -> None:
    np.testing.assert_array_equal(Replace(ROWS[::-1]).apply(ROWS), ROWS[::-1])
    np.testing.assert_array_equal(Replace(V[None]).apply(ROWS), np.tile(V, (len(ROWS), 1)))


def test_what_an_operation_returns_can_be_written_to() -> None:
    for operation in (Zero(), Replace(V[None])):
        operation.apply(ROWS)[0, 0] = 1.0
    assert V[0] != 1.0


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([3.0, 4.0], [3.0, 14.0], 2.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [1e6, 0.0], 1.0),
        ([1e-30, 0.0], [3e-30, 0.0], 2.0),
        ([1e30, 0.0], [-1e30, 0.0], 2.0),
        ([1e-30, 0.0], [1e30, 0.0], 1e60),
    ],
)
def test_a_change_is_relative_to_the_row_it_was_made_to(
    before: list[float], after: list[float], change: float
) -> None:
    changes = relative_change(np.array([before], np.float32), np.array([after], np.float32))
    np.testing.assert_allclose(changes, [change], rtol=1e-6)
