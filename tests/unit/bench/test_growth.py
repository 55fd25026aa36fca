"""Time that grows faster than in proportion is found, and is an error."""

import pytest

from bench.growth import BOUND, Slope, exponent, growth_faults, growth_tables, planning_axes

SIZES = (32, 64, 128, 256)


def slope(power: float, by: str = "runs") -> Slope:
    return Slope("planning", by, SIZES, [size**power for size in SIZES], power)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("milliseconds", [0.001, 7.0])
def test_the_exponent_is_the_power_of_the_size(power: float, milliseconds: float) -> None:
    times = [milliseconds * size**power for size in SIZES]
    assert exponent(SIZES, times) == pytest.approx(power)


def test_what_a_step_costs_anyway_does_not_hide_how_the_rest_grows() -> None:
    assert exponent(SIZES, [1000 + size**2 for size in SIZES]) > BOUND


def test_what_a_step_costs_anyway_does_not_make_it_steeper() -> None:
    assert exponent(SIZES, [100 + size for size in SIZES]) < 1


def test_the_smallest_sizes_are_not_fitted() -> None:
    assert exponent(SIZES, [1e9, 64, 128, 256]) == pytest.approx(1)


@pytest.mark.parametrize(("power", "faults"), [(0.9, 0), (1.0, 0), (BOUND, 0), (1.2, 1), (2.0, 1)])
def test_a_slope_above_the_bound_is_a_fault(power: float, faults: int) -> None:
    assert len(growth_faults([slope(1.0), slope(power)])) == faults


def test_a_fault_names_what_grows_by_what_and_the_bound() -> None:
    (fault,) = growth_faults([slope(2.0, by="layers")])
    assert "planning takes n^2.00 by layers" in fault
    assert str(BOUND) in fault


def test_a_row_of_the_table_says_which_slope_is_too_steep() -> None:
    (table,) = growth_tables([slope(1.0), slope(2.0)])
    assert [*table.columns[-1].cells] == ["1.00", "2.00 too steep"]


def test_planning_is_timed_by_tokens_layers_runs_and_vectors() -> None:
    assert {axis.by for axis in planning_axes()} >= {"tokens", "layers", "runs", "vectors"}


def test_each_size_is_twice_the_one_before() -> None:
    for axis in planning_axes():
        assert [*axis.sizes] == [axis.sizes[0] * 2**power for power in range(len(axis.sizes))]
