"""Planning is timed step by step, in every case alone."""

import io

import pytest
from rich.console import Console

from bench.planning import Case, measure_planning, planning_tables

QUIET = Console(file=io.StringIO())


@pytest.mark.parametrize(
    "case",
    [
        Case("captured", 2),
        Case("own vectors", 2, vectors=1),
        Case("own vectors, a run replaced", 2, vectors=1, changes=True),
        Case("a whole prompt", 1, tokens=16),
    ],
    ids=lambda case: case.name,
)
def test_a_case_gives_a_median_and_a_longest_step(case: Case) -> None:
    (figures,) = measure_planning(QUIET, [case])
    assert (figures.name, figures.runs) == (case.name, case.runs)
    assert 0 < figures.median_ms <= figures.max_ms
    (table,) = planning_tables([figures])
    assert table.row_count == 1
