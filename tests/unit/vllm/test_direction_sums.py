"""Directions of 16 bits have float32 sums, and the largest of each row are the largest of those,
whatever the faster product makes of them on the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actserve_server.domain.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projected,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.domain.tensors import ElementType, rounded
from actserve_server.engine.forms import projection_form
from actserve_server.engine.vllm import direction_sums, processor
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.project_rows import project
from tests.unit.vllm.batches import CPU

ROWS, WIDTH, DIRECTIONS = 19, 48, 600
RNG = np.random.default_rng(7)
# Whole numbers, whose sums are exact in float32 in any order. Those of 16 bits have fewer digits,
# so that many are equal which are not, and the faster product puts others first.
WHOLE = RNG.integers(-30, 31, (ROWS, WIDTH)).astype(np.float32)
PLAIN = Projection(
    RNG.integers(-30, 31, (DIRECTIONS, WIDTH)).astype(np.float32), element_type=ElementType.BF16
)
BIAS = RNG.integers(-3000, 3000, DIRECTIONS).astype(np.float32)
HIGH = np.full(DIRECTIONS, 9000, np.float32)
"""Thresholds that few sums are above."""


@pytest.fixture(autouse=True)
def computed_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the faster product used on any processor. How many rows it left uncertain each time."""
    monkeypatch.setattr(processor, "multiplies", lambda dtype: dtype is torch.bfloat16)
    left: list[int] = []
    of_all = direction_sums._of_all

    def counted(sums, rows, count, thresholds):  # type: ignore[no-untyped-def]
        left.append(len(rows))
        return of_all(sums, rows, count, thresholds)

    monkeypatch.setattr(direction_sums, "_of_all", counted)
    return left


def by_worker(projected: Projected, rows: np.ndarray) -> np.ndarray:
    bank = VectorBank(CPU, 1 << 20)
    form = projection_form(projected)
    directions, offsets = map(bank.rows, bank.hold_all(form.vectors))
    assert directions.dtype is torch.bfloat16
    return project(torch.from_numpy(rows).bfloat16(), form, directions, offsets).numpy()


@pytest.mark.parametrize("top_k", [None, 1, 20, DIRECTIONS])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "activation",
    [
        Identity(),
        ReLU(),
        JumpReLU(np.abs(BIAS)),
        JumpReLU(HIGH),
        JumpReLU(-np.abs(BIAS)),
        TopK(20),
        TopK(40),
    ],
    ids=["identity", "relu", "jump relu", "few features", "below zero", "top 20", "top 40"],
)
def test_a_worker_says_what_the_formulas_say(
    activation: Activation, bias: np.ndarray | None, top_k: int | None
) -> None:
    projected = Projected(replace(PLAIN, bias=bias, activation=activation), top_k)
    found, wanted = by_worker(projected, WHOLE), projected.apply(WHOLE)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(HIGH), TopK(20)])
def test_only_rows_of_near_equals_are_computed_twice(
    activation: Activation, computed_again: list[int]
) -> None:
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    rows = rounded(rows, ElementType.BF16)
    encoder = np.random.default_rng(2).standard_normal((16 * DIRECTIONS, WIDTH)).astype(np.float32)
    # In no row more than one feature, and in the others all of them alike.
    encoder[:, 0], rows[:3] = 0, 0
    rows[:3, 0] = 1
    high = np.full(len(encoder), 20, np.float32)
    alike = JumpReLU(high) if isinstance(activation, JumpReLU) else activation
    projected = Projected(replace(PLAIN, directions=encoder, activation=alike), 20)
    np.testing.assert_allclose(by_worker(projected, rows), projected.apply(rows), rtol=1e-5)
    uncertain = 3 if isinstance(activation, TopK) else 0
    assert sum(computed_again) == uncertain


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(HIGH), TopK(20)])
def test_a_row_says_the_same_alone_and_beside_whatever_others_are_steered_to(
    activation: Activation,
) -> None:
    rng = np.random.default_rng(3)
    rows = rounded(rng.standard_normal((ROWS, WIDTH)).astype(np.float32), ElementType.BF16)
    rows[4] = 0  # Of which no candidate is sure.
    encoder = rng.standard_normal((16 * DIRECTIONS, WIDTH)).astype(np.float32)
    high = np.full(len(encoder), 5, np.float32)
    alike = JumpReLU(high) if isinstance(activation, JumpReLU) else activation
    projected = Projected(replace(PLAIN, directions=encoder, activation=alike), 20)
    alone = np.concatenate([by_worker(projected, row[None]) for row in rows[::2]])
    rows[1::2] *= rng.choice([0, 1e-30, 1e30, np.nan], (len(rows[1::2]), 1))
    beside = by_worker(projected, rows)[::2]
    (values, columns), (others, theirs) = map(projected.split, (alone, beside))
    np.testing.assert_array_equal(columns, theirs)
    np.testing.assert_allclose(values, others, rtol=1e-6)


def test_what_is_not_a_number_is_seen() -> None:
    rows = WHOLE.copy()
    rows[3, 2], rows[5, 0] = np.nan, np.inf
    directions = np.where(PLAIN.directions == 0, 1, PLAIN.directions)
    for activation in (Identity(), ReLU(), TopK(20)):
        projected = Projected(replace(PLAIN, directions=directions, activation=activation), 20)
        np.testing.assert_array_equal(by_worker(projected, rows), projected.apply(rows))


def test_rounded_directions_differ_from_float32_by_their_rounding() -> None:
    """The bound that the documents state: a part 2^-9 of the sum of |x_i E_i|."""
    encoder = RNG.standard_normal((DIRECTIONS, WIDTH)).astype(np.float32)
    rows = rounded(RNG.standard_normal((ROWS, WIDTH)).astype(np.float32), ElementType.BF16)
    exact = Projection(encoder).apply(rows)
    found = by_worker(Projected(replace(PLAIN, directions=encoder)), rows)
    bound = np.abs(rows) @ np.abs(encoder).T * 2.0**-9
    error = np.abs(found - exact)
    assert (error <= bound * 1.001).all()
    assert error.max() > bound.max() / 50
    # What float32 with the same rounded directions says is within float32's own noise.
    same = Projection(rounded(encoder, ElementType.BF16)).apply(rows)
    np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-4)
