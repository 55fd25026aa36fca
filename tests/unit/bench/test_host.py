"""What the part `host` asks of engines, and how it shows what it found."""

import io

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from actserve_server.domain.operations import Add
from bench.engines import apply
from bench.host import LAYERS, RUNS, host_tables, modes, workloads
from bench.ratios import Ratio
from tests.unit.tiny_engine import TinyEngine

INFO = TinyEngine(layer_count=LAYERS).info


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_number_of_runs_decodes_and_is_prefilled() -> None:
    assert [(load.name, load.count) for load in workloads((1, 64))] == [
        ("decode, 1 runs", 1),
        ("prefill, 1 runs", 1),
        ("decode, 64 runs", 64),
        ("prefill, 64 runs", 64),
    ]


@pytest.mark.parametrize(
    ("mode", "captured", "changed"),
    [
        ("idle", 0, 0),
        ("captured at 1 site", 1, 0),
        ("captured at 32 sites", 32, 0),
        ("own vector at 1 site", 0, 1),
        ("own vector at 32 sites", 0, 32),
    ],
)
def test_a_mode_taps_as_many_sites_as_it_says(mode: str, captured: int, changed: int) -> None:
    (run,) = apply(modes(INFO)[mode], workloads((1,))[0].requests(0))
    assert [len(capture.sites) for capture in run.captures] == [captured] * (captured > 0)
    assert [len(each.sites) for each in run.interventions] == [changed] * (changed > 0)


def test_no_two_runs_share_a_vector() -> None:
    runs = apply(modes(INFO)["own vector at 32 sites"], workloads(RUNS)[-1].requests(0))
    vectors = {
        np.asarray(each.operation.vector).tobytes()
        for run in runs
        for each in run.interventions
        if isinstance(each.operation, Add)
    }
    assert len(vectors) == len(runs) == max(RUNS)


def test_a_row_of_the_table_is_a_workload_and_a_column_a_mode() -> None:
    (table,) = host_tables(
        [
            Ratio("decode, 1 runs", "idle", [100.0, 300.0], [0.9, 0.8]),
            Ratio("decode, 1 runs", "captured at 1 site", [200.0, 200.0], [0.5, 0.5]),
        ]
    )
    assert [column.header for column in table.columns] == [
        "workload",
        "plain vLLM, tokens/s",
        "idle",
        "captured at 1 site",
    ]
    assert [[*column.cells] for column in table.columns] == [
        ["decode, 1 runs"],
        ["200"],
        ["0.850"],
        ["0.500"],
    ]
