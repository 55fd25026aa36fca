"""An edit with a condition changes the rows whose score meets it, and leaves the others alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add, Mean, Zero
from actserve_server.domain.positions import NO_END, Selection
from actserve_server.domain.probes import (
    EACH_TOKEN,
    Aggregator,
    Ema,
    Probe,
    RollingMean,
    RunningScore,
    ScoreReduction,
)
from actserve_server.domain.runs import Intervention
from actserve_server.engine.forms import score_state_bytes, vector_bytes
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.step_batch import BatchRows
from actserve_server.engine.vllm.step_plan import LOST, REUSED, route
from actserve_server.engine.vllm.taps import MET, NOT_MET
from tests.unit.test_probes import AGGREGATORS
from tests.unit.vllm.batches import (
    HEAD_WIDTH,
    HEADS,
    MODEL,
    WIDTH,
    Batch,
    carry_out,
    constant,
    receipts_of,
)
from tests.unit.vllm.steps import ALL, at, change, make_run, rows, site, start

TOKENS = 23
DIRECTION = np.array([1.0, -2.0, 0.5, 0.25], np.float32)
MAX = Aggregator(reduction=ScoreReduction.MAX)


def when(
    name: str,
    aggregator: Aggregator = EACH_TOKEN,
    above: float | None = 0.0,
    below: float | None = None,
    direction: np.ndarray = DIRECTION,
    bias: float = 0.1,
) -> Condition:
    return Condition(Probe(site(name), direction, bias), aggregator, above, below)


@dataclass
class Watched:
    """A run and the rows that the model computes for it."""

    change: Intervention
    key: int
    hidden: np.ndarray = field(init=False)
    residual: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.key)
        self.hidden, self.residual = rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)

    def expected(self) -> tuple[np.ndarray, list[int]]:
        """The stream after the change, and where it acts."""
        stream = self.hidden + self.residual
        condition = self.change.when
        assert condition is not None
        at_branch = condition.probe.site == site("mlp_out.0")
        numbers = condition.probe.numbers(self.hidden if at_branch else stream)
        scores = condition.aggregator.scores(numbers.tolist())
        selected = self.change.selection.among([0] * TOKENS).tolist()
        acts = [position for position in selected if condition.meets(float(scores[position]))]
        stream[acts] = self.change.operation.apply(stream[acts])
        return stream, acts


def _carry_out(
    bank: VectorBank, parts: Sequence[tuple[Watched, BatchRows]]
) -> tuple[torch.Tensor, dict[tuple[int, int], list[float]]]:
    """The stream after a step with these rows, one part after the other, and its receipts."""
    pieces = [(each, slice(item.position, item.end)) for each, item in parts]
    count = sum(item.count for _, item in parts)
    hidden, residual = (
        torch.from_numpy(np.concatenate([getattr(each, name)[where] for each, where in pieces]))
        for name in ("hidden", "residual")
    )
    batch = Batch.zeros(count)
    batch.hidden, batch.residual = hidden, residual
    routed = route((item for _, item in parts), bank, MODEL)
    if routed is not None:
        batch.carry_out(routed)
    notes = {}
    if routed is not None and (receipts := routed.receipts) is not None:
        keys = zip(receipts.keys.tolist(), receipts.positions.tolist(), strict=True)
        notes = dict(zip(keys, receipts.changes.tolist(), strict=True))
    return batch.stream, notes


def _chunks(rng: np.random.Generator, left: int) -> Iterator[int]:
    while left:
        size = min(left, int(rng.integers(1, 9)))
        yield size
        left -= size


SELECTIONS = [ALL, at((4, 9), (15, NO_END)), at((0, 6))]


@pytest.mark.parametrize("where", SELECTIONS, ids=str)
@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
def test_rows_whose_score_meets_the_bounds_are_changed_in_any_chunks(
    bank: VectorBank, aggregator: Aggregator, where: Selection
) -> None:
    changes = [
        change(
            Add(constant(5.0 + key)),
            "resid_pre.1",
            where=where,
            when=when(name, aggregator, above, below),
        )
        for key, (name, above, below) in enumerate(
            [("resid_post.0", 0.2, None), ("mlp_out.0", None, 0.3), ("resid_pre.1", -1.0, 1.0)]
        )
    ]
    sequences = [Watched(each, key) for key, each in enumerate(changes)]
    runs = [start(bank, each.key, make_run(each.change)) for each in sequences]
    expected = [each.expected() for each in sequences]
    assert any(len(acts) > 0 for _, acts in expected)
    rng = np.random.default_rng(1)
    for until in (11, TOKENS, TOKENS):  # The second and third time after a preemption.
        chunks = [[*_chunks(rng, until)] for _ in sequences]
        reached = [0] * len(sequences)
        while any(chunks):
            parts, row = [], 0
            for each, run in zip(sequences, runs, strict=True):
                if sizes := chunks[each.key]:
                    size = sizes.pop(0)
                    parts.append((each, rows(run, row, reached[each.key], size)))
                    row += size
            stream, notes = _carry_out(bank, parts)
            for each, item in parts:
                wanted, acts = expected[each.key]
                own = slice(item.row, item.row + item.count)
                np.testing.assert_allclose(
                    stream[own], wanted[item.position : item.end], rtol=1e-5, atol=1e-5
                )
                for position in range(item.position, item.end):
                    if (each.key, position) in notes:
                        met = position in acts
                        changed, ratio, sites, decided = notes[each.key, position]
                        assert (changed, sites) == (met, 1)
                        assert (ratio > 0) == met
                        assert decided == (MET if met else NOT_MET)
                reached[each.key] = item.end


def test_a_row_that_does_not_act_is_left_as_it_is_in_branch_and_residual(bank: VectorBank) -> None:
    batch = Batch.random(4, torch.bfloat16)
    before = batch.hidden.clone(), batch.residual.clone()
    condition = when("resid_post.0", above=1e30)
    run = start(bank, 1, make_run(change(Zero(), "resid_post.0", when=condition)))
    carry_out(bank, batch, rows(run, 0, 0, 4))
    assert torch.equal(batch.hidden, before[0])
    assert torch.equal(batch.residual, before[1])


def test_a_changed_site_is_read_as_the_interventions_before_left_it(bank: VectorBank) -> None:
    """The first makes every row 1, so the second acts; the third finds what the second has made."""
    ones = when("resid_post.0", above=0.5, direction=constant(0.25), bias=0.0)
    run = make_run(
        change(Mean(constant(1.0)), "resid_post.0"),
        change(Mean(constant(7.0)), "resid_post.0", when=ones),
        change(Mean(constant(9.0)), "resid_post.0", when=when("resid_post.0", above=8.0)),
    )
    batch = Batch.zeros(3)
    carry_out(bank, batch, rows(start(bank, 1, run), 0, 0, 3))
    assert batch.stream[:, 0].tolist() == [7, 7, 7]


def test_another_site_is_read_after_all_interventions_there(bank: VectorBank) -> None:
    condition = when("resid_post.0", above=2.0, direction=constant(0.25), bias=0.0)
    run = make_run(
        change(Mean(constant(9.0)), "final_norm", when=condition),
        change(Mean(constant(3.0)), "resid_post.0"),
    )
    batch = Batch.zeros(2)
    carry_out(bank, batch, rows(start(bank, 1, run), 0, 0, 2))
    assert batch.normed[:, 0].tolist() == [9, 9]


def test_interventions_with_one_condition_are_decided_together(bank: VectorBank) -> None:
    """As the heads of one intervention of the request are."""
    wide = HEADS * HEAD_WIDTH
    condition = when("q.0", below=0.5, above=None, direction=constant(1.0, wide), bias=0.0)
    parts = [
        change(Mean(constant(4.0, HEAD_WIDTH)), "q.0", heads=(head,), when=condition)
        for head in (0, 1)
    ]
    batch = Batch.zeros(2)
    batch.q[1] = 1.0
    routed = carry_out(bank, batch, rows(start(bank, 1, make_run(*parts)), 0, 0, 2))
    assert batch.q.tolist() == [[4.0] * wide, [1.0] * wide]
    receipts = receipts_of(routed)
    assert receipts.edits.tolist() == [0, 0, 1, 1]
    assert receipts.changes[:, 0].tolist() == [1, 0, 1, 0]
    # An equal condition of its own reads what the first one left.
    apart = [
        change(Mean(constant(4.0, HEAD_WIDTH)), "q.0", heads=(0,), when=condition),
        change(
            Mean(constant(4.0, HEAD_WIDTH)),
            "q.0",
            heads=(1,),
            when=when("q.0", below=0.5, above=None, direction=constant(1.0, wide), bias=0.0),
        ),
    ]
    batch = Batch.zeros(1)
    carry_out(bank, batch, rows(start(bank, 2, make_run(*apart)), 0, 0, 1))
    assert batch.q.tolist() == [[4.0] * HEAD_WIDTH + [0.0] * HEAD_WIDTH]


def test_tokens_that_are_selected_by_id_are_scored_alone_or_after_all_before_them(
    bank: VectorBank,
) -> None:
    for aggregator, wanted in ((EACH_TOKEN, [0, 0, 0, 1]), (MAX, [0, 1, 0, 1])):
        batch = Batch.zeros(4)
        batch.hidden[0] = batch.hidden[3] = 1.0
        condition = when("mlp_out.0", aggregator, above=0.5, direction=constant(0.25), bias=0.0)
        edit = change(
            Mean(constant(7.0)), "final_norm", where=at((0, NO_END), token_ids=(5,)), when=condition
        )
        carry_out(bank, batch, rows(start(bank, 1, make_run(edit)), 0, 0, [1, 5, 1, 5]))
        assert (batch.normed[:, 0] == 7).tolist() == [bool(each) for each in wanted]


def test_a_score_without_all_tokens_before_it_is_noted_as_lost(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(change(Zero(), "resid_post.0", when=when("mlp_out.0", MAX))))
    for position, tokens in ((3, 2), (5, 1)):  # From a cache that it should not have read.
        batch = Batch.numbered(6)
        receipts = receipts_of(carry_out(bank, batch, rows(run, 0, position, tokens)))
        lost = receipts.positions >= position
        assert receipts.changes.numpy()[lost, 0].tolist() == [LOST] * tokens
        assert receipts.changes.numpy()[~lost, 0].tolist() == [REUSED] * np.count_nonzero(~lost)
        assert torch.equal(batch.hidden, Batch.numbered(6).hidden)
    batch = Batch.zeros(6)
    receipts = receipts_of(carry_out(bank, batch, rows(run, 0, 0, 6)))
    assert set(receipts.changes[:, 3].tolist()) == {MET}


def test_a_score_without_memory_goes_on_behind_a_cached_prefix(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(change(Zero(), "resid_post.0", when=when("mlp_out.0"))))
    receipts = receipts_of(carry_out(bank, Batch.zeros(2), rows(run, 0, 3, 2)))
    assert receipts.changes[:, 0].tolist() == [REUSED] * 3 + [0, 0]
    assert receipts.changes[3:, 3].tolist() == [MET, MET]


def test_a_score_that_is_not_finite_is_noted_as_no_number_and_nothing_acts(
    bank: VectorBank,
) -> None:
    batch = Batch.zeros(3)
    batch.hidden[1, 0] = torch.inf
    run = start(
        bank, 1, make_run(change(Mean(constant(1.0)), "final_norm", when=when("mlp_out.0")))
    )
    receipts = receipts_of(carry_out(bank, batch, rows(run, 0, 0, 3)))
    assert receipts.changes[:, 3].isnan().tolist() == [False, True, False]
    assert batch.normed[:, 0].tolist() == [1, 0, 1]


def test_scoring_goes_on_where_nothing_is_selected_yet(bank: VectorBank) -> None:
    edit = change(Zero(), "resid_post.0", where=at((4, NO_END)), when=when("mlp_out.0", MAX, 0.5))
    run = start(bank, 1, make_run(edit))
    batch = Batch.zeros(3)
    batch.hidden[2] = torch.from_numpy(DIRECTION)
    routed = carry_out(bank, batch, rows(run, 0, 0, 3))
    assert routed.receipts is None
    assert routed.keys == {1}
    batch = Batch.zeros(2)
    receipts = receipts_of(carry_out(bank, batch, rows(run, 0, 3, 2)))
    assert receipts.changes[:, 3].tolist() == [MET]


def test_a_run_counts_the_directions_of_its_conditions(bank: VectorBank) -> None:
    condition = when("mlp_out.0", Aggregator(RollingMean(5), ScoreReduction.MAX))
    edits = [change(Add(constant(1.0)), "resid_post.0", when=condition)] * 2
    counted = vector_bytes(edits)
    assert sum(counted.values()) == 2 * 4 * WIDTH
    run = start(bank, 1, make_run(*edits))
    assert bank.used_bytes == 2 * 4 * WIDTH
    run.end(bank)
    assert bank.used_bytes == 0


@pytest.mark.parametrize(
    ("aggregator", "numbers"),
    [
        (EACH_TOKEN, 0),
        (MAX, 2),
        (Aggregator(Ema(0.5)), 2),
        (Aggregator(RollingMean(1)), 1),
        (Aggregator(RollingMean(1024), ScoreReduction.MEAN), 1025),
    ],
    ids=str,
)
def test_what_a_score_keeps_is_counted(aggregator: Aggregator, numbers: int) -> None:
    edits = [change(Zero(), "resid_post.0", when=when("mlp_out.0", aggregator))]
    assert score_state_bytes(edits) == 8 * numbers
    assert score_state_bytes(edits * 2) == 8 * numbers
    assert RunningScore(aggregator).add(1.0) == 1.0
