"""A step reads and changes the rows of the right run at the right absolute positions."""

import numpy as np
import torch

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.engine.vllm import taps as taps_module
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.points import Stage, Tap
from actserve_server.engine.vllm.routing import BatchRows, RoutedStep, TappedRun, route
from actserve_server.engine.vllm.wire import Edit, RunTaps

WIDTH = 4
ALL = Spans(((0, NO_END),))
MLP_OUT, RESID_POST, NEXT_PRE = (Tap(2, stage) for stage in Stage)


def _bank() -> VectorBank:
    return VectorBank(WIDTH, torch.float32, torch.device("cpu"))


def _run(
    bank: VectorBank,
    key: int,
    capture: tuple[Tap, ...] = (),
    spans: Spans = ALL,
    edits: tuple[tuple[Tap, Spans, float], ...] = (),
) -> TappedRun:
    made = tuple(Edit(tap, where, np.full(WIDTH, value, np.float32)) for tap, where, value in edits)
    slots = tuple(bank.put(edit.delta) for edit in made)
    return TappedRun(RunTaps(key, capture, spans, made), slots)


def _pass(routed: RoutedStep, hidden: torch.Tensor, residual: torch.Tensor, point: int = 2) -> None:
    with taps_module.step(routed.plan):
        taps_module.tap(hidden, residual, point)


def _route(bank: VectorBank, *batch: BatchRows) -> RoutedStep:
    routed = route(batch, bank, WIDTH, torch.float32)
    assert routed is not None
    return routed


def _numbered(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row r of the branch is r, of the residual 100 r."""
    ramp = torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, WIDTH)
    return ramp, 100 * ramp


def test_rows_go_to_the_run_whose_rows_they_are() -> None:
    bank = _bank()
    routed = _route(
        bank,
        BatchRows(_run(bank, 11, (RESID_POST,)), row=5, position=40, count=2),
        BatchRows(
            _run(bank, 12, (RESID_POST,), Spans(((0, 1), (2, 3)))), row=0, position=0, count=4
        ),
    )
    _pass(routed, *_numbered(8))
    (block,) = routed.blocks
    assert block.keys.tolist() == [11, 11, 12, 12]
    assert block.positions.tolist() == [40, 41, 0, 2]
    assert block.data[0, :, 0].tolist() == [505.0, 606.0, 0.0, 202.0]


def test_a_branch_is_read_alone_and_the_stream_as_the_sum() -> None:
    bank = _bank()
    run = _run(bank, 1, (MLP_OUT, RESID_POST, NEXT_PRE))
    routed = _route(bank, BatchRows(run, row=3, position=0, count=1))
    _pass(routed, *_numbered(4))
    assert routed.blocks[0].data[:, 0, 0].tolist() == [3.0, 303.0, 303.0]


def test_a_capture_sees_the_edits_of_its_stage_and_before_and_none_after() -> None:
    bank = _bank()
    edits = ((MLP_OUT, ALL, 0.25), (RESID_POST, ALL, 0.5), (NEXT_PRE, ALL, 1.0))
    run = _run(bank, 1, (MLP_OUT, RESID_POST, NEXT_PRE), edits=edits)
    routed = _route(bank, BatchRows(run, row=0, position=0, count=1))
    hidden, residual = _numbered(1)
    _pass(routed, hidden, residual)
    assert routed.blocks[0].data[:, 0, 0].tolist() == [0.25, 0.75, 1.75]
    assert hidden[0, 0] == 1.75


def test_an_edit_touches_only_its_run_and_its_positions() -> None:
    bank = _bank()
    first = _run(bank, 1, edits=((RESID_POST, Spans(((11, 13),)), 1.0),))
    second = _run(bank, 2, edits=((RESID_POST, ALL, 10.0), (RESID_POST, ALL, 20.0)))
    hidden = torch.zeros(8, WIDTH)
    routed = _route(
        bank,
        BatchRows(first, row=2, position=10, count=4),
        BatchRows(second, row=7, position=99, count=1),
    )
    _pass(routed, hidden, torch.zeros(8, WIDTH))
    assert hidden[:, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 30]


def test_generated_only_means_the_position_even_when_recomputed_as_prefill() -> None:
    """After a preemption, prompt (0-4) and generated tokens (5-7) come in one chunk."""
    bank = _bank()
    run = _run(bank, 1, edits=((RESID_POST, Spans(((5, NO_END),)), 1.0),))
    hidden = torch.zeros(8, WIDTH)
    _pass(_route(bank, BatchRows(run, row=0, position=0, count=8)), hidden, torch.zeros(8, WIDTH))
    assert hidden[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_receipts_cover_what_was_edited_and_what_came_edited_from_the_cache() -> None:
    bank = _bank()
    run = _run(bank, 9, edits=((RESID_POST, Spans(((1, NO_END),)), 1.0),))
    first = _route(bank, BatchRows(run, row=0, position=4, count=2)).receipts
    assert first is not None
    assert first.positions.tolist() == [1, 2, 3, 4, 5]
    again = _route(bank, BatchRows(run, row=0, position=0, count=7)).receipts
    assert again is not None
    assert again.positions.tolist() == [1, 2, 3, 4, 5, 6]


def test_runs_with_nothing_to_do_in_a_step_cost_no_plan() -> None:
    bank = _bank()
    run = _run(bank, 1, (RESID_POST,), Spans(((0, 3),)))
    assert route([BatchRows(run, row=0, position=3, count=5)], bank, WIDTH, torch.float32) is None


def test_a_planned_point_that_the_pass_never_reached_is_known() -> None:
    bank = _bank()
    routed = _route(bank, BatchRows(_run(bank, 1, (RESID_POST,)), row=0, position=0, count=1))
    assert list(routed.plan.missed()) == [2]
    _pass(routed, *_numbered(1))
    assert list(routed.plan.missed()) == []


def test_an_error_in_a_tap_is_not_swallowed() -> None:
    bank = _bank()
    routed = _route(bank, BatchRows(_run(bank, 1, (RESID_POST,)), row=50, position=0, count=1))
    try:
        _pass(routed, *_numbered(4))
    except (IndexError, RuntimeError):
        return
    raise AssertionError("the tap's error was swallowed")


def test_the_bank_grows_and_reuses_slots() -> None:
    bank = _bank()
    slots = [bank.put(np.full(WIDTH, value, np.float32)) for value in range(200)]
    assert bank.gather(torch.tensor(slots))[:, 0].tolist() == list(range(200))
    bank.release(slots[7])
    assert bank.put(np.zeros(WIDTH, np.float32)) == slots[7]
    assert bank.used == 200
