"""A step reads and changes the rows of the right run at the right absolute positions."""

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Project,
    Replace,
    Zero,
)
from actserve_server.domain.positions import NO_END
from actserve_server.domain.probes import Aggregator, Ema, Probe
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Run, Unembed
from actserve_server.engine.vllm import bank as bank_module
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.step_plan import route
from tests.unit.vllm.batches import (
    HEAD_WIDTH,
    HEADS,
    MODEL,
    WIDTH,
    Batch,
    add,
    carry_out,
    constant,
    firsts,
    plan,
    receipts_of,
)
from tests.unit.vllm.steps import at, change, make_run, read, rows, site, start


def test_rows_go_to_the_run_whose_rows_they_are(bank: VectorBank) -> None:
    routed = carry_out(
        bank,
        Batch.numbered(8),
        rows(start(bank, 11, make_run(read("resid_post.0"))), row=5, position=40, tokens=2),
        rows(
            start(bank, 12, make_run(read("resid_post.0", where=at((0, 1), (2, 3))))),
            row=0,
            position=0,
            tokens=4,
        ),
    )
    (block,) = routed.blocks
    assert block.keys.tolist() == [11, 11, 12, 12]
    assert block.positions.tolist() == [40, 41, 0, 2]
    assert firsts(routed) == [[505.0, 606.0, 0.0, 202.0]]


def test_columns_come_in_the_order_in_which_a_run_asked(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(read("final_norm", "resid_pre.1", "mlp_out.0")))
    routed = carry_out(bank, Batch.numbered(4), rows(run, row=3, position=0, tokens=1))
    assert firsts(routed) == [[30000.0], [303.0], [3.0]]


def test_runs_that_read_other_sites_get_blocks_of_their_own(bank: VectorBank) -> None:
    routed = carry_out(
        bank,
        Batch.numbered(4),
        rows(start(bank, 1, make_run(read("q.0"))), row=0, position=0, tokens=1),
        rows(start(bank, 2, make_run(read("final_norm"))), row=1, position=0, tokens=2),
        rows(start(bank, 3, make_run(read("q.0"))), row=3, position=7, tokens=1),
    )
    found = [
        (block.keys.tolist(), [str(column.site.site) for column in block.columns])
        for block in routed.blocks
    ]
    assert found == [([1, 3], ["q.0"]), ([2, 2], ["final_norm"])]


def test_selected_tokens_are_captured_at_every_position_for_the_server_to_sift(
    bank: VectorBank,
) -> None:
    """Which generated tokens match is known to the server too."""
    run = make_run(read("mlp_out.0", where=at((0, NO_END), token_ids=(7,))))
    item = rows(start(bank, 1, run), row=0, position=0, tokens=[7, 1])
    assert firsts(carry_out(bank, Batch.numbered(2), item)) == [[0.0, 1.0]]


def test_every_capture_of_a_run_has_rows_of_its_own(bank: VectorBank) -> None:
    first = read("mlp_out.0", where=at((0, 2)))
    second = read("mlp_out.0", "final_norm", where=at((1, 2), (3, 4)))
    routed = carry_out(
        bank,
        Batch.numbered(8),
        rows(start(bank, 1, make_run(first, second)), row=0, position=0, tokens=4),
        # The same sites, but as another one of its captures.
        rows(start(bank, 2, make_run(second)), row=4, position=0, tokens=4),
    )
    found = {
        (block.number, *np.unique(block.keys).tolist()): [
            block.positions.tolist(),
            *(
                [] if (got := column.work.rows) is None else got[:, 0].tolist()
                for column in block.columns
            ),
        ]
        for block in routed.blocks
    }
    assert found == {
        (0, 1): [[0, 1], [0, 1]],
        (1, 1): [[1, 3], [1, 3], [10000, 30000]],
        (0, 2): [[1, 3], [5, 7], [50000, 70000]],
    }


def test_rows_to_unembed_come_with_the_tokens_after_them(bank: VectorBank) -> None:
    lens = Unembed(top_k=1, next_token=True)
    run = start(bank, 1, make_run(read("resid_post.0", where=at((5, 6), (7, 9)), derived=lens)))
    other = start(bank, 2, make_run(read("resid_post.0")))
    same = start(bank, 3, make_run(read("resid_post.0", derived=Unembed(1, next_token=True))))
    routed = plan(
        bank,
        rows(run, row=0, position=5, tokens=[10, 20, 30, 40], prompt_tokens=9),
        rows(other, row=4, position=0, tokens=[50], prompt_tokens=1),
        rows(same, row=5, position=0, tokens=[60, 70], prompt_tokens=2),
    )
    first, second = routed.blocks
    assert (first.keys.tolist(), first.derived) == ([1, 1, 1, 3, 3], lens)
    assert first.next_ids is not None
    assert first.next_ids.tolist() == [20, 40, -1, 70, -1]
    assert (second.keys.tolist(), second.derived, second.next_ids) == ([2], None, None)


def test_a_branch_is_read_alone_and_the_stream_as_the_sum(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(read("mlp_out.0", "resid_post.0", "resid_pre.1")))
    routed = carry_out(bank, Batch.numbered(4), rows(run, row=3, position=0, tokens=1))
    assert firsts(routed) == [[3.0], [303.0], [303.0]]


def test_rows_of_the_logits_are_made_of_those_of_the_final_norm(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(add(5.0, "final_norm"), read("logits", "final_norm")))
    routed = carry_out(bank, Batch.numbered(4), rows(run, row=1, position=0, tokens=2))
    assert [str(column.site.site) for column in routed.blocks[0].columns] == [
        "logits",
        "final_norm",
    ]
    assert firsts(routed) == [[10005.0, 20005.0]] * 2


def test_a_capture_sees_the_edits_of_its_site_and_before_and_none_after(bank: VectorBank) -> None:
    # Neither is listed in the order in which the pass reaches them.
    edits = [add(1.0, "resid_pre.1"), add(0.5, "resid_post.0"), add(0.25, "mlp_out.0")]
    run = make_run(*edits, read("resid_pre.1", "mlp_out.0", "resid_post.0"))
    batch = Batch.zeros(1)
    routed = carry_out(bank, batch, rows(start(bank, 1, run), row=0, position=0, tokens=1))
    assert firsts(routed) == [[1.75], [0.25], [0.75]]
    assert batch.stream[0, 0] == 1.75


def test_an_edit_of_several_sites_is_made_at_each_in_the_order_of_the_pass(
    bank: VectorBank,
) -> None:
    double = change(Ablate(constant(1.0), coefficient=-1.0), "resid_pre.1", "mlp_out.0")
    run = make_run(double, read("mlp_out.0", "resid_post.0", "resid_pre.1"))
    batch = Batch.zeros(1)
    batch.hidden += 1
    batch.residual += 10
    routed = carry_out(bank, batch, rows(start(bank, 1, run), row=0, position=0, tokens=1))
    assert np.concatenate(firsts(routed)).tolist() == pytest.approx([2.0, 12.0, 24.0])


def test_an_edit_touches_only_its_run_and_its_positions(bank: VectorBank) -> None:
    first = start(bank, 1, make_run(add(1.0, where=at((11, 13)))))
    second = start(bank, 2, make_run(add(10.0), add(20.0)))
    batch = Batch.zeros(8)
    carry_out(
        bank,
        batch,
        rows(first, row=2, position=10, tokens=4),
        rows(second, row=7, position=99, tokens=1),
    )
    assert batch.stream[:, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 30]
    assert not batch.q.any()
    assert not batch.normed.any()


def test_generated_only_means_the_position_even_when_recomputed_as_prefill(
    bank: VectorBank,
) -> None:
    """After a preemption, prompt (0-4) and generated tokens (5-7) come in one chunk."""
    run = start(bank, 1, make_run(add(1.0, where=at((5, NO_END)))))
    batch = Batch.zeros(8)
    carry_out(bank, batch, rows(run, row=0, position=0, tokens=8))
    assert batch.stream[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "run",
    [
        make_run(read("resid_post.0", where=at((0, 3)))),
        make_run(add(1.0, where=at((8, NO_END)))),
    ],
    ids=["capture", "edit"],
)
def test_runs_with_nothing_to_do_in_a_step_cost_no_plan(bank: VectorBank, run: Run) -> None:
    item = rows(start(bank, 1, run), row=0, position=3, tokens=5)
    assert route([item], bank, MODEL) is None


def test_a_planned_place_that_the_pass_never_reached_is_known(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(change(Zero(), "q.0"), read("resid_post.0")))
    routed = plan(bank, rows(run, row=0, position=0, tokens=1))
    batch = Batch.zeros(1)
    with taps.step(routed.plan):
        taps.tap(batch.q, None, 0)
    with pytest.raises(RuntimeError, match=r"never reached tap places \[1\]"):
        routed.plan.check()
    batch.carry_out(routed)


def test_an_error_in_a_tap_is_not_swallowed(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(read("q.0", "resid_post.0")))
    routed = plan(bank, rows(run, row=50, position=0, tokens=1))
    batch = Batch.numbered(4)
    with taps.step(routed.plan):
        taps.tap(batch.q, None, 0)  # The pass goes on for others.
    with pytest.raises((IndexError, RuntimeError)):
        routed.plan.check()


def test_rows_are_changed_and_scored_in_blocks_as_all_at_once(
    bank: VectorBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether vectors were gathered before the pass or as it comes to them."""
    rng = np.random.default_rng(0)
    own, ones = (rng.standard_normal((9, WIDTH)).astype(np.float32) for _ in range(2))
    when = Condition(Probe(site("mlp_out.0"), ones[0]), Aggregator(Ema(0.5)), above=0.0)
    run = start(
        bank,
        1,
        make_run(
            change(Replace(own), "mlp_out.0", where=at((0, 9))),
            change(Add(ones[1]), "resid_post.0", "resid_pre.1", when=when),
            change(Add(constant(2.0, HEAD_WIDTH)), "q.0", heads=(1, 0)),
            change(Project(ones[:2]), "final_norm"),
            read("mlp_out.0", "resid_pre.1", "q.0", "final_norm"),
        ),
    )
    whole_q = change(Add(constant(3.0, HEADS * HEAD_WIDTH)), "q.0")
    other = start(bank, 2, make_run(change(Add(ones[3]), "resid_post.0"), whole_q))

    def outcome() -> list[torch.Tensor]:
        batch = Batch.random(16)
        items = (rows(run, row=1, position=0, tokens=9), rows(other, row=11, position=0, tokens=4))
        routed = carry_out(bank, batch, *items)
        works = [column.work for block in routed.blocks for column in block.columns]
        captured = [each.rows for each in works if each.rows is not None]
        assert len(captured) == 4
        changes = receipts_of(routed).changes
        return [batch.q, batch.hidden, batch.stream, batch.normed, changes, *captured]

    whole = outcome()
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * 4 * WIDTH)
    monkeypatch.setattr(taps, "NOTED_AT_ONCE", 1)
    monkeypatch.setattr(bank_module, "GATHERED_AHEAD_BYTES", 0)
    for mine, wanted in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_projected_rows_are_let_go_at_their_tap(bank: VectorBank) -> None:
    """Rows of all sites of a long prompt would else wait for the end of the pass, and what is
    reserved for the run is its components."""
    projected = Projected(Projection(np.ones((1, 4), np.float32)))
    run = start(bank, 1, make_run(read("mlp_out.0", "resid_post.0", derived=projected)))
    routed = plan(bank, rows(run, row=0, position=0, tokens=3))
    batch = Batch.numbered(3)
    with taps.step(routed.plan):
        taps.tap(batch.hidden, batch.residual, 1)
        works = [column.work for column in routed.blocks[0].columns]
        assert [each.rows.tolist() for each in works if each.rows is not None] == [
            [[0.0], [4.0], [8.0]],
            [[0.0], [404.0], [808.0]],
        ]
