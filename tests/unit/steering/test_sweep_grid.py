"""Every prompt meets every point of every variant once."""

import itertools

import pytest

from actserve_server.domain.errors import ActserveError
from actserve_server.steering.sweep_grid import MAX_CELLS, Axes, Grid

VARIANTS = (Axes(), Axes(coefficients=3), Axes(2, 3, 4), Axes(sites=2), Axes(positions=2))


def test_cells_are_all_combinations_each_once_by_prompt() -> None:
    grid = Grid(3, VARIANTS)
    cells = [grid[number] for number in range(len(grid))]
    assert [cell.number for cell in cells] == list(range(len(grid)))
    assert [cell.prompt for cell in cells] == sorted(cell.prompt for cell in cells)

    def indices(count: int) -> list[int | None]:
        return [*range(count)] if count else [None]

    wanted = {
        (prompt, variant, *point)
        for prompt in range(3)
        for variant, axes in enumerate(VARIANTS)
        for point in itertools.product(
            indices(axes.coefficients), indices(axes.sites), indices(axes.positions)
        )
    }
    got = [(c.prompt, c.variant, c.coefficient, c.site, c.position) for c in cells]
    assert len(got) == len(wanted) == 3 * (1 + 3 + 24 + 2 + 2)
    assert set(got) == wanted


def test_as_many_cells_as_are_allowed_are_allowed() -> None:
    Grid(1 << 8, (Axes(coefficients=1 << 8),)).check()


def test_too_many_cells_are_refused_with_the_arithmetic() -> None:
    grid = Grid(1000, (Axes(), Axes(50, 20, 1), *[Axes(sites=2)] * 5))
    with pytest.raises(ActserveError) as refused:
        grid.check()
    assert refused.value.metadata == {"cells": "1011000", "limit": str(MAX_CELLS)}
    assert (
        "1000 prompts x [(1) + (50 coefficients x 20 sites x 1 positions) + (2 sites) + (2 sites) "
        "+ 6 of 3 more] of the variants are 1011000 cells"
    ) in refused.value.message
