"""A worker makes of rows what networks of probes say, whatever sites they read."""

import itertools

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.domain.runs import Capture
from actserve_server.engine.vllm.bank import VectorBank
from tests.unit.networks import KINDS, network, outputs_of, reading
from tests.unit.vllm.batches import BANK_BYTES, CPU, HEAD_WIDTH, HEADS, WIDTH, Batch, add, carry_out
from tests.unit.vllm.steps import make_run, rows, site, start

Q, BRANCH, STREAM = site("q.0"), site("mlp_out.0"), site("resid_post.0")
NEXT, NORM = site("resid_pre.1"), site("final_norm")
WIDTHS = {Q: HEADS * HEAD_WIDTH, BRANCH: WIDTH, STREAM: WIDTH, NEXT: WIDTH, NORM: WIDTH}
SITES = {
    "one": (STREAM,),
    "two of a place": (STREAM, BRANCH),
    "of other widths, against the order of the pass": (NORM, Q, STREAM),
}


def _rows_of(batch: Batch) -> dict:
    tensors = {Q: batch.q, BRANCH: batch.hidden, STREAM: batch.stream, NEXT: batch.stream}
    return {key: each.float().numpy() for key, each in (tensors | {NORM: batch.normed}).items()}


def _given(bank: VectorBank, batch: Batch, capture: Capture) -> np.ndarray:
    run = start(bank, 1, make_run(capture))
    routed = carry_out(bank, batch, rows(run, 0, 0, len(batch.q)))
    run.end(bank)
    ((column,),) = (block.columns for block in routed.blocks)
    assert column.work.rows is not None
    return column.work.rows.numpy()


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_gives_of_the_rows_of_its_sites_what_its_formula_says(
    kind: str, sites: str, dtype: torch.dtype
) -> None:
    bank, batch = VectorBank(CPU, BANK_BYTES), Batch.random(9, dtype)
    capture = reading([network({each: WIDTHS[each] for each in SITES[sites]}, **KINDS[kind])])
    expected = outputs_of(capture).apply(_rows_of(batch))
    np.testing.assert_allclose(_given(bank, batch, capture), expected, rtol=1e-5, atol=1e-5)
    assert bank.used_bytes == 0


def test_networks_of_all_kinds_and_sites_give_one_row_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * WIDTH * 2)
    bank, batch = VectorBank(CPU, BANK_BYTES), Batch.random(9)
    every = [
        network({each: WIDTHS[each] for each in sites}, seed=seed, **kind)
        for seed, (kind, sites) in enumerate(itertools.product(KINDS.values(), SITES.values()))
    ]
    capture = reading([*every, every[0], *reversed(every)])
    expected = outputs_of(capture).apply(_rows_of(batch))
    np.testing.assert_allclose(_given(bank, batch, capture), expected, rtol=1e-5, atol=1e-5)


def test_runs_with_equal_networks_take_one_product_for_a_site() -> None:
    bank, batch = VectorBank(CPU, BANK_BYTES), Batch.random(8)
    runs = []
    for key in range(4):
        capture = reading(network({STREAM: WIDTH}, seed=seed) for seed in range(5))
        runs.append(start(bank, key, make_run(capture)))
    other = start(bank, 9, make_run(reading([network({STREAM: WIDTH}, seed=5)])))
    at = [rows(run, 2 * row, 0, 2) for row, run in enumerate(runs[:3])]
    routed = carry_out(bank, batch, *at, rows(other, 6, 0, 1), rows(runs[3], 7, 0, 1))
    first, second = routed.blocks
    assert first.keys.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert second.keys.tolist() == [9]
    assert len(first.columns) == 1
    assert bank.used_bytes == 4 * (5 + 1) * (WIDTH + 1)


def test_rows_are_read_after_the_edits_of_their_site() -> None:
    bank, batch = VectorBank(CPU, BANK_BYTES), Batch.random(3)
    before = batch.stream.clone()
    capture = reading([network({BRANCH: WIDTH, STREAM: WIDTH})])
    run = start(bank, 1, make_run(add(1.0), capture))
    hidden = batch.hidden.clone()
    routed = carry_out(bank, batch, rows(run, 0, 0, 3))
    assert routed.blocks[0].columns[0].work.rows is not None
    expected = outputs_of(capture).apply({BRANCH: hidden.numpy(), STREAM: (before + 1).numpy()})
    got = routed.blocks[0].columns[0].work.rows.numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_plan_may_be_carried_out_again_wherever_its_vectors_lie_by_then() -> None:
    bank = VectorBank(CPU, BANK_BYTES)
    filler = start(bank, 7, make_run(add(1.0)))
    capture = reading([network({STREAM: WIDTH, NORM: WIDTH}, units=3)])
    run = start(bank, 1, make_run(capture))
    batch = Batch.random(4)
    routed = carry_out(bank, batch, rows(run, 0, 0, 4))
    filler.end(bank)
    bank._close_gaps()
    again = Batch.random(4)
    again.hidden *= 2
    again.carry_out(routed)
    column = routed.blocks[0].columns[0]
    assert column.work.rows is not None
    expected = outputs_of(capture).apply(_rows_of(again))
    np.testing.assert_allclose(column.work.rows.numpy(), expected, rtol=1e-5, atol=1e-5)
