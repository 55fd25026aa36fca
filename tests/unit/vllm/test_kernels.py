"""The kernels compute what the operations are defined to be, whoever's rows go together. That of
features is in test_feature_edits.py."""

from collections import defaultdict
from typing import get_args

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import (
    Clamp,
    Features,
    Operation,
    Project,
    Replace,
    Zero,
    relative_change,
    unit,
)
from actserve_server.engine.forms import Form, Kernel, form_of
from actserve_server.engine.vllm.kernels import COMPUTE, change_of
from tests.contract.formulas import formulas

WIDTH = 24
RNG = np.random.default_rng(3)
ROWS = (RNG.standard_normal((12, WIDTH)) * RNG.uniform(0.01, 100, (12, 1))).astype(np.float32)
DIRECTION = RNG.standard_normal(WIDTH).astype(np.float32)
OPERATIONS: dict[str, Operation] = {
    **{formula.name: formula.domain for formula in formulas(WIDTH)},
    "project onto one": Project(RNG.standard_normal((1, WIDTH)).astype(np.float32)),
    "project onto many": Project(RNG.standard_normal((9, WIDTH)).astype(np.float32)),
}
"""By name; `Replace` with one row."""


def _tensors(form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """One set of vectors and scalars, for every row."""
    return torch.from_numpy(_vectors(form))[None], torch.tensor([form.scalars])


def _vectors(form: Form) -> np.ndarray:
    assert form.vectors.rows is not None
    return form.vectors.rows


def _close(actual: torch.Tensor, expected: np.ndarray, rows: np.ndarray) -> None:
    """Equal up to float32's rounding of the rows."""
    scale = np.linalg.norm(expected, axis=1, keepdims=True) + np.linalg.norm(rows, axis=1)[:, None]
    assert actual.dtype == torch.float32
    assert (np.abs(actual.numpy() - expected) <= 2e-6 * scale).all()


def test_the_table_has_every_operation_and_every_kernel() -> None:
    others = {type(operation) for operation in OPERATIONS.values()}
    assert others == set(get_args(Operation)) - {Features}
    kernels = {form_of(operation).kernel for operation in OPERATIONS.values()}
    assert kernels == set(COMPUTE) == set(Kernel) - {Kernel.FEATURES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_form_computes_its_operation(name: str, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(ROWS).to(dtype).float()
    form = form_of(OPERATIONS[name])
    got = COMPUTE[form.kernel](rows, *_tensors(form)).expand_as(rows)
    _close(got, OPERATIONS[name].apply(rows.numpy()), rows.numpy())


def test_rows_with_operations_of_their_own_go_through_one_kernel_together() -> None:
    """All but LINEAR take a vector and scalars for each row."""
    by_kernel: defaultdict[Kernel, list[tuple[Operation, Form]]] = defaultdict(list)
    for operation in OPERATIONS.values():
        form = form_of(operation)
        # The vector of Zero has a width of its own.
        if form.kernel is not Kernel.LINEAR and form.vectors.width == WIDTH:
            by_kernel[form.kernel].append((operation, form))
    assert set(by_kernel) == {Kernel.ADD, Kernel.ALONG, Kernel.REPLACE}
    for kernel, members in by_kernel.items():
        assert len(members) > 1
        rows = ROWS[: len(members)]
        got = COMPUTE[kernel](
            torch.from_numpy(rows),
            torch.from_numpy(np.stack([_vectors(form) for _, form in members])),
            torch.tensor([form.scalars for _, form in members]),
        )
        alone = [op.apply(row[None]) for row, (op, _) in zip(rows, members, strict=True)]
        _close(got, np.concatenate(alone), rows)


def test_the_vector_of_zero_stands_for_any_width() -> None:
    form = form_of(Zero())
    assert _vectors(form).shape == (1, 1)
    for width in (1, 7, WIDTH):
        rows = torch.ones(3, width)
        assert not COMPUTE[form.kernel](rows, *_tensors(form)).expand_as(rows).any()


def test_a_replacement_keeps_its_rows_exactly() -> None:
    form = form_of(Replace(ROWS))
    one_each = torch.from_numpy(_vectors(form))[:, None]
    got = COMPUTE[form.kernel](torch.ones(12, WIDTH), one_each, torch.empty(12, 0))
    assert np.array_equal(got.numpy(), ROWS)


@pytest.mark.parametrize(("low", "high"), [(None, 5.0), (-5.0, None), (-5.0, 5.0)])
def test_a_component_within_its_bounds_leaves_every_bit_of_its_row(
    low: float | None, high: float | None
) -> None:
    along = ROWS @ unit(DIRECTION)
    inside = along == np.clip(along, low, high)
    assert inside.any()
    assert not inside.all()
    form = form_of(Clamp(DIRECTION, low, high))
    got = COMPUTE[form.kernel](torch.from_numpy(ROWS), *_tensors(form)).numpy()
    assert (got == ROWS).all(axis=1).tolist() == inside.tolist()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], [0.0, 0.0]),
        ([3.0, 4.0], [0.0, 0.0], [1.0, 1.0]),
        ([3.0, 4.0], [3.0, 14.0], [1.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [1e6, 0.0], [1.0, 1.0]),
    ],
)
def test_a_change_is_whether_and_how_much_of_the_row(
    before: list[float], after: list[float], expected: list[float]
) -> None:
    # Between other rows, which must not matter.
    rows = [torch.tensor([[1.0, 1.0], each, [0.0, 0.0]]) for each in (before, after)]
    assert change_of(*rows)[1].tolist() == pytest.approx(expected)


def test_changes_are_those_the_domain_defines() -> None:
    after = OPERATIONS["ablate"].apply(ROWS)
    after[::3] = ROWS[::3]
    got = change_of(torch.from_numpy(ROWS), torch.from_numpy(after)).numpy()
    np.testing.assert_allclose(got[:, 1], relative_change(ROWS, after), rtol=1e-5)
    assert got[:, 0].tolist() == (after != ROWS).any(axis=1).tolist()


def test_the_change_of_huge_rows_is_finite() -> None:
    before = torch.full((1, 4), 1e30)
    assert change_of(before, -before).tolist() == [[1.0, 2.0]]
