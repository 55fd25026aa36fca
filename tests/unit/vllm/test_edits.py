"""Edits of many runs and kinds go together, and each does what it does alone."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import (
    Ablate,
    Add,
    Mean,
    Operation,
    Project,
    Replace,
    Zero,
    relative_change,
)
from actserve_server.engine.vllm.bank import VectorBank
from tests.contract.formulas import Formula, formulas
from tests.unit.vllm.batches import (
    HEAD_WIDTH,
    HEADS,
    WIDTH,
    Batch,
    carry_out,
    constant,
    receipts_of,
)
from tests.unit.vllm.steps import at, change, make_run, rows, start


def test_each_run_has_its_edits_in_its_own_order_whatever_others_do(bank: VectorBank) -> None:
    add, mean = Add(np.arange(1, 5, dtype=np.float32)), Mean(constant(5.0))
    ablate, keep = Ablate(constant(1.0)), Project(np.eye(2, WIDTH, dtype=np.float32))
    orders: list[list[Operation]] = [
        [add, mean, ablate],
        [mean, add],
        [keep, ablate, add, keep],
        [ablate, keep],
        [Zero(), add, add],
    ]
    for order in permutations(range(len(orders)), len(orders)):
        batch = Batch.random(len(orders))
        expected = batch.stream.numpy()
        items = []
        for row, which in enumerate(order):
            edits = [change(operation, "resid_post.0") for operation in orders[which]]
            items.append(rows(start(bank, which, make_run(*edits)), row, position=0, tokens=1))
            for operation in orders[which]:
                expected[row] = operation.apply(expected[row : row + 1])
        carry_out(bank, batch, *items)
        np.testing.assert_allclose(batch.stream, expected, rtol=1e-5, atol=1e-5)
        for item in items:
            item.run.end(bank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["resid_post.0", "mlp_out.0"])
def test_every_operation_at_once_is_each_on_its_own_rows(
    bank: VectorBank, name: str, dtype: torch.dtype
) -> None:
    """A run for every operation, with two rows each and one beside them that no run has."""
    table = formulas(WIDTH)
    batch = Batch.random(3 * len(table), dtype)
    before = (batch.hidden if name == "mlp_out.0" else batch.stream).float().numpy().copy()
    items = [
        rows(start(bank, key, make_run(change(each.domain, name))), 3 * key, 0, tokens=2)
        for key, each in enumerate(table)
    ]
    routed = carry_out(bank, batch, *items)
    after = (batch.hidden if name == "mlp_out.0" else batch.stream).float().numpy()
    receipts = receipts_of(routed)
    for key, formula in enumerate(table):
        own, none = slice(3 * key, 3 * key + 2), 3 * key + 2
        expected = formula.domain.apply(before[own])
        ulp = 1e-5 if dtype is torch.float32 else 2**-8
        np.testing.assert_allclose(after[own], expected, rtol=ulp, atol=1e-5, err_msg=str(formula))
        assert np.array_equal(after[none], before[none])
        notes = receipts.changes[torch.from_numpy(receipts.keys == key)]
        moved = (after[own] != before[own]).any(axis=1)
        assert notes[:, 0].tolist() == moved.tolist()
        changes = relative_change(before[own], after[own])
        np.testing.assert_allclose(notes[:, 1], changes, rtol=1e-4, atol=1e-6)


def test_a_changed_stream_is_exact_in_bfloat16(bank: VectorBank) -> None:
    """A residual of 300 cannot hold 3.015625 as a difference: bfloat16 steps by 2 there."""
    batch = Batch(*(each.bfloat16() for each in vars(Batch.zeros(3)).values()))
    batch.residual += 300
    run = start(bank, 1, make_run(change(Mean(constant(3.015625)), "resid_post.0")))
    carry_out(bank, batch, rows(run, row=1, position=0, tokens=1))
    assert batch.stream[:, 0].tolist() == [300.0, 3.015625, 300.0]
    assert batch.residual[:, 0].tolist() == [300.0, 0.0, 300.0]


def test_a_changed_branch_leaves_the_residual(bank: VectorBank) -> None:
    batch = Batch.numbered(3)
    run = start(bank, 1, make_run(change(Zero(), "mlp_out.0")))
    carry_out(bank, batch, rows(run, row=1, position=0, tokens=2))
    assert batch.hidden[:, 0].tolist() == [0, 0, 0]
    assert batch.residual[:, 0].tolist() == [0, 100, 200]


@pytest.mark.parametrize("heads", [(0,), (1,), (0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("formula", formulas(HEAD_WIDTH), ids=str)
def test_with_heads_each_ones_part_is_a_row_to_the_operation(
    bank: VectorBank, formula: Formula, count: int, heads: tuple[int, ...]
) -> None:
    batch = Batch.random(count + 1)
    before = batch.q.clone().numpy().reshape(count + 1, HEADS, HEAD_WIDTH)
    run = start(bank, 1, make_run(change(formula.domain, "q.0", heads=heads)))
    routed = carry_out(bank, batch, rows(run, row=1, position=0, tokens=count))

    expected = before.copy()
    for head in heads:
        expected[1:, head] = formula.domain.apply(before[1:, head])
    got = batch.q.numpy().reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    others = [head for head in range(HEADS) if head not in heads]
    assert np.array_equal(got[:, others], before[:, others])

    # A receipt counts the heads that changed, and sums up by how much.
    changes = receipts_of(routed).changes.numpy()
    moved = (got != before).any(axis=2)[1:].sum(axis=1)
    assert changes[:, 0].tolist() == moved.tolist()
    ratios = sum(relative_change(before[1:, head], got[1:, head]) for head in heads)
    np.testing.assert_allclose(changes[:, 1], ratios, rtol=1e-4, atol=1e-6)


def test_runs_with_other_heads_and_none_keep_apart(bank: VectorBank) -> None:
    narrow, wide = Add(constant(1.0, HEAD_WIDTH)), Add(constant(10.0, HEADS * HEAD_WIDTH))
    edits = [
        change(narrow, "q.0", heads=(0,)),
        change(narrow, "q.0", heads=(1,)),
        change(wide, "q.0"),
        change(narrow, "q.0", heads=(1, 0)),
    ]
    batch = Batch.zeros(4)
    items = [
        rows(start(bank, key, make_run(edit)), row=key, position=0, tokens=1)
        for key, edit in enumerate(edits)
    ]
    carry_out(bank, batch, *items)
    assert batch.q[:, ::HEAD_WIDTH].tolist() == [[1, 0], [0, 1], [10, 10], [1, 1]]


def test_each_position_replaces_all_heads_by_its_own_row(bank: VectorBank) -> None:
    values = np.repeat(np.arange(3, dtype=np.float32)[:, None], HEAD_WIDTH, axis=1)
    where = at((2, 5))
    run = make_run(change(Replace(values + 1), "q.0", where=where, heads=(0, 1)))
    batch = Batch.zeros(6)
    carry_out(bank, batch, rows(start(bank, 1, run), row=0, position=1, tokens=6))
    assert batch.q[:, ::HEAD_WIDTH].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "bounds", [(0, 9), (0, 4, 6, 9), (0, 2, 9), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (6, 9)], ids=str
)
def test_a_row_for_each_position_finds_its_position_in_any_chunks(
    bank: VectorBank, bounds: tuple[int, ...]
) -> None:
    values = 10 + np.arange(5, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    # Beside another run, whose rows go through the same kernel.
    run = start(
        bank, 1, make_run(change(Replace(values), "resid_post.0", where=at((1, 3), (5, 8))))
    )
    other = start(bank, 2, make_run(change(Mean(constant(99.0)), "resid_post.0")))
    whole = [0, 10, 11, 0, 0, 12, 13, 14, 0]
    # The second time is after a preemption.
    for _ in range(2):
        for first, end in pairwise(bounds):
            batch = Batch.zeros(12)
            carry_out(
                bank,
                batch,
                rows(other, row=0, position=first, tokens=2),
                rows(run, row=2, position=first, tokens=end - first),
            )
            assert batch.stream[: 2 + end - first, 0].tolist() == [99, 99, *whole[first:end]]
