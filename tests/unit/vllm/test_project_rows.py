"""A worker projects rows as the formulas say, whatever the activation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.domain.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projected,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.domain.ranking import largest
from actserve_server.engine.forms import projection_form
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.largest_columns import largest_columns
from actserve_server.engine.vllm.project_rows import project
from tests.unit.vllm.batches import CPU

ROWS, WIDTH, DIRECTIONS = 23, 6, 9
RNG = np.random.default_rng(3)
# Whole numbers, so that sums are exact in any order, and many are equal.
ROWS_OF = RNG.integers(-2, 3, (ROWS, WIDTH)).astype(np.float32)
PLAIN = Projection(RNG.integers(-1, 2, (DIRECTIONS, WIDTH)).astype(np.float32))
THRESHOLDS = RNG.integers(-2, 3, DIRECTIONS).astype(np.float32)
ACTIVATIONS = [Identity(), ReLU(), JumpReLU(THRESHOLDS), TopK(3), TopK(DIRECTIONS + 4)]


def projected_by_worker(projected: Projected, rows: np.ndarray) -> np.ndarray:
    bank = VectorBank(CPU, 1 << 16)
    form = projection_form(projected)
    directions, offsets = map(bank.rows, bank.hold_all(form.vectors))
    return project(torch.from_numpy(rows), form, directions, offsets).numpy()


@pytest.mark.parametrize("top_k", [None, 1, 4, DIRECTIONS])
@pytest.mark.parametrize("bias", [None, RNG.integers(-2, 3, DIRECTIONS).astype(np.float32)])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda each: type(each).__name__)
def test_a_worker_says_what_the_formulas_say(
    activation: Activation, bias: np.ndarray | None, top_k: int | None
) -> None:
    projected = Projected(replace(PLAIN, bias=bias, activation=activation), top_k)
    found = projected_by_worker(projected, ROWS_OF)
    assert found.shape == (ROWS, projected.width)
    assert np.array_equal(found, projected.apply(ROWS_OF))


@pytest.mark.parametrize("kinds", [1, 2, 3, 50, 10_000])
@pytest.mark.parametrize("count", [1, 7, 40, 200, 400])
def test_a_few_of_many_come_in_the_order_of_the_definition(count: int, kinds: int) -> None:
    values = np.random.default_rng(kinds).integers(-kinds, kinds, (30, 400)).astype(np.float32)
    values[values == 0] = RNG.choice([0.0, -0.0], (values == 0).sum())
    columns = largest_columns(torch.from_numpy(values), count)
    assert np.array_equal(columns, largest(values, count)[0])


def test_rows_of_any_number_are_projected_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * DIRECTIONS * 5)
    projected = Projected(replace(PLAIN, activation=ReLU()), 2)
    assert np.array_equal(projected_by_worker(projected, ROWS_OF), projected.apply(ROWS_OF))


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_is_not_a_number_is_seen(top_k: int | None) -> None:
    rows = ROWS_OF.copy()
    rows[3, 2] = np.nan
    rows[5, 0] = np.inf
    directions = np.where(PLAIN.directions == 0, 1, PLAIN.directions)
    projected = Projected(Projection(directions, activation=ReLU()), top_k)
    assert np.array_equal(
        projected_by_worker(projected, rows), projected.apply(rows), equal_nan=True
    )


def test_equal_projections_are_one_in_the_bank_and_others_are_not() -> None:
    same = [
        projection_form(Projected(replace(PLAIN, directions=PLAIN.directions.copy()), 2))
        for _ in range(2)
    ]
    assert same[0].key == same[1].key
    others = [
        Projected(PLAIN, 3),
        Projected(replace(PLAIN, directions=-PLAIN.directions), 2),
        Projected(replace(PLAIN, bias=np.ones(DIRECTIONS, np.float32)), 2),
        *(Projected(replace(PLAIN, activation=each), 2) for each in ACTIVATIONS[1:]),
    ]
    keys = {projection_form(each).key for each in others} | {same[0].key}
    assert len(keys) == len(others) + 1
