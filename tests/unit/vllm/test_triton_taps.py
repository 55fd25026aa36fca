"""Taps as Triton kernels do what the other taps do, by the tables alone. Triton's interpreter runs
them here."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import Add, Features, Operation, Replace
from actserve_server.domain.positions import NO_END
from actserve_server.domain.runs import Run
from actserve_server.engine.vllm import triton_taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.replayed_step import ReplayedStep
from actserve_server.engine.vllm.resident_runs import ResidentRuns, places_of
from actserve_server.engine.vllm.step_batch import Batch as StepBatch
from actserve_server.engine.vllm.step_plan import Planner, RoutedStep, route
from actserve_server.engine.vllm.tap_tables import TapSizes, TapTables
from actserve_server.engine.vllm.tapped_run import TappedRun
from bench.tap_cases import EXACT, TapCase, cases, difference, expected, make
from tests.contract.formulas import Formula, formulas
from tests.unit.vllm.batches import CPU, HEAD_WIDTH, HEADS, MODEL, WIDTH, Batch, constant
from tests.unit.vllm.steps import at, change, make_run, read, start

pytestmark = pytest.mark.usefixtures("interpreted")

SIZES = TapSizes(
    sites=len(MODEL.layout.sites), width=HEADS * HEAD_WIDTH, rows=8, runs=4, slots=5, spans=2
)
EVERYWHERE = ("mlp_out.0", "resid_post.0", "resid_pre.1", "final_norm")
ROWS = np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)


# Random tables.


@pytest.mark.parametrize("case", [*cases(width=24, rows=3)], ids=lambda case: case.name)
def test_the_kernel_does_to_random_tables_what_the_formulas_do(case: TapCase) -> None:
    got = make(case)
    want = expected(got)
    got.tap()
    assert not difference(got, want, exact=set(case.kernels) <= set(EXACT))
    made = (want.tables.change_stamps == want.tables.clock[0]).any()
    assert made == (case.load != "empty")


def test_rows_may_lie_apart() -> None:
    case = TapCase("pair", "full", torch.bfloat16, 24, 4, EXACT)
    got = make(case)
    want = expected(got)
    wide = torch.cat([got.hidden, got.hidden], dim=1)
    triton_taps.tap_rows(wide[:, :24], got.residual, got.place, got.tables, got.bank)
    assert torch.equal(wide[:, :24], want.hidden)
    assert torch.equal(wide[:, 24:], got.hidden)


def test_sums_in_bfloat16_are_rounded_as_the_model_rounds_them() -> None:
    """To nearest, ties to even, whatever the interpreter's own habits are."""
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, 3.3e38, -3.3e38]
    halves = [1 + 2**-8, 1 + 2**-7, 255.5, 256.0, 257.0, 1.9921875, 2**-126]
    numbers = torch.tensor([*special, *halves, *[each * 2**-9 for each in halves]]).bfloat16()
    width = len(numbers) ** 2
    hidden = numbers.repeat(len(numbers))[None]
    residual = numbers.repeat_interleave(len(numbers))[None]
    tables = TapTables.empty(TapSizes(4, width, rows=1, runs=1), torch.bfloat16, CPU)
    tables.clock.fill_(1)
    tables.row_run.zero_()
    tables.captures_at.fill_(1)
    tables.capture_spans[0, 0, 0, 1] = 1
    tables.slot_of.copy_(torch.arange(4))
    with np.errstate(invalid="ignore", over="ignore"):
        place = triton_taps.Place(1, (False, True, True))
        triton_taps.tap_rows(hidden, residual, place, tables, torch.zeros(1))
    branch, stream = tables.rows[1, 1], tables.rows[1, 2]
    for got, should in ((branch, hidden), (stream, hidden + residual)):
        assert torch.equal(got.isnan(), should.isnan())
        is_number = ~should.isnan()
        assert torch.equal(got[is_number].view(torch.int16), should[is_number].view(torch.int16))


@pytest.mark.parametrize(
    ("rows", "dtype", "why"),
    [(9, torch.float32, "at most"), (2, torch.bfloat16, "the tables are for")],
)
def test_tensors_that_the_kernel_cannot_take_are_refused(
    rows: int, dtype: torch.dtype, why: str
) -> None:
    tables = TapTables.empty(SIZES, torch.float32, CPU)
    hidden = torch.zeros(rows, WIDTH, dtype=dtype)
    with pytest.raises(ValueError, match=why):
        triton_taps.tap_rows(hidden, None, triton_taps.Place(0, (True,)), tables, torch.zeros(1))


# Runs, as the worker has them.


@dataclass
class Replays:
    """Carries steps out through the tables, and through the other taps beside it."""

    bank: VectorBank
    dtype: torch.dtype = torch.float32
    sizes: TapSizes = SIZES

    def __post_init__(self) -> None:
        tables = TapTables.empty(self.sizes, self.dtype, CPU)
        self.residents = ResidentRuns(tables, MODEL, self.bank)
        self.runs: dict[str, TappedRun] = {}
        self.places = [triton_taps.Place(*each) for each in places_of(MODEL.layout)]

    def begin(self, *runs: Run) -> str:
        """They are called a, b, c; returns why the last one is not in the tables."""
        why = ""
        for run in runs:
            name = "abcdefgh"[len(self.runs)]
            self.runs[name] = start(self.bank, len(self.runs), run)
            why = self.residents.begin(name, self.runs[name])
        return why

    def batch(self, *requests: tuple[str, int, int]) -> StepBatch:
        """Requests as (name, first position, rows)."""
        names, computed, counts = zip(*requests, strict=True)
        return StepBatch(
            list(names),
            np.cumsum([0, *counts]),
            np.array(computed),
            np.zeros((len(names), 64), np.int32),
            np.full(len(names), 10),
        )

    def pass_through(self, rows: Batch) -> None:
        tables, numbers = self.residents.tables, self.bank.numbers
        for place, (hidden, residual) in zip(
            self.places,
            ((rows.q, None), (rows.hidden, rows.residual), (rows.normed, None)),
            strict=True,
        ):
            triton_taps.tap_rows(hidden, residual, place, tables, numbers)

    def step(self, *requests: tuple[str, int, int]) -> tuple[RoutedStep, RoutedStep]:
        """Both ways, from the same rows. Asserts that they give the same, and that the tables prove
        it; returns both steps, the one through the tables first."""
        batch = self.batch(*requests)
        assert not self.residents.why_not(batch, self.runs)
        count = sum(rows for *_, rows in requests)
        through, beside = (Batch.random(count, self.dtype) for _ in range(2))
        for run in self.runs.values():
            run.reached = 64  # So that nothing is taken for skipped.
        planned, other = (self.routed(batch) for _ in range(2))
        self.residents.write(batch, self.runs)
        self.pass_through(through)
        replayed = ReplayedStep(planned, batch, self.runs, self.residents, MODEL)
        assert replayed.take()
        beside.carry_out(other)
        for field in fields(Batch):
            self.close(getattr(through, field.name), getattr(beside, field.name))
        self.same(planned, other)
        return planned, other

    def routed(self, batch: StepBatch) -> RoutedStep:
        routed = route((rows for _, rows in batch.tapped(self.runs)), self.bank, MODEL)
        assert routed is not None
        return routed

    def same(self, planned: RoutedStep, other: RoutedStep) -> None:
        for one, two in zip(planned.blocks, other.blocks, strict=True):
            assert one.positions.tolist() == two.positions.tolist()
            for mine, theirs in zip(one.columns, two.columns, strict=True):
                assert mine.work.rows is not None
                assert theirs.work.rows is not None
                self.close(mine.work.rows, theirs.work.rows)
        if planned.receipts is not None:
            assert other.receipts is not None
            loose = 1e-5 if self.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(
                planned.receipts.changes, other.receipts.changes, rtol=loose, atol=1e-6
            )

    def close(self, mine: torch.Tensor, theirs: torch.Tensor) -> None:
        loose = 2e-6 if self.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(mine, theirs, rtol=loose, atol=loose)


@pytest.fixture
def replays(bank: VectorBank) -> Replays:
    return Replays(bank)


@pytest.mark.parametrize("formula", formulas(WIDTH), ids=str)
def test_every_operation_is_that_of_the_other_taps(formula: Formula, bank: VectorBank) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        replays = Replays(bank, dtype)
        edit = change(formula.domain, "mlp_out.0", "resid_post.0", where=at((1, 3)))
        assert not replays.begin(make_run(edit, read("resid_pre.1")))
        _, other = replays.step(("a", 0, 3))
        assert other.receipts is not None
        assert other.receipts.changes[:, 2].tolist() == [2.0] * 2


def test_amounts_of_features_are_added(bank: VectorBank) -> None:
    replays = Replays(bank)
    features = _features(gain=1.0)
    assert not replays.begin(make_run(change(features, "resid_post.0"), read("resid_post.0")))
    planned, _ = replays.step(("a", 0, 2))
    assert planned.receipts is not None
    assert planned.receipts.changes[:, 0].tolist() == [1.0, 1.0]


def _features(gain: float) -> Features:
    rng = np.random.default_rng(2)
    directions = rng.standard_normal((3, WIDTH)).astype(np.float32)
    offsets = np.array([0.5, -1.0, 2.0], np.float32)
    gains = np.full(3, gain, np.float32)
    return Features(None, np.arange(3), directions, gains, offsets)


def test_runs_of_a_batch_get_each_their_own(replays: Replays) -> None:
    mine = make_run(
        change(Add(constant(1.0)), "resid_post.0"),
        change(Replace(ROWS), "resid_post.0", "final_norm", where=at((2, 4), (6, 7))),
        read("resid_post.0", "final_norm", where=at((0, 3), (5, NO_END))),
    )
    heads = make_run(read("q.0"), read("mlp_out.0", "resid_pre.1", where=at((1, 2))))
    other = make_run(change(Add(ROWS[1]), *EVERYWHERE), read("resid_post.0"))
    assert not replays.begin(mine, heads, other)
    for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "a")):
        for position in (0, 2, 6):
            replays.step(*((name, position, 1) for name in order))
    replays.step(("p", 0, 2), ("c", 3, 1), ("a", 1, 4))


def test_a_step_that_goes_on_writes_nothing_but_its_number(replays: Replays) -> None:
    changed = change(Replace(ROWS), "resid_post.0", where=at((4, 7)))
    assert not replays.begin(make_run(changed, read("resid_post.0", where=at((3, 6)))))
    replays.step(("a", 3, 1))
    tables = replays.residents.tables
    before = {field.name: _copy(getattr(tables, field.name)) for field in fields(tables)}
    for position in (4, 5, 6, 7):
        replays.residents.go_on()
        rows, wanted = Batch.random(1), Batch.random(1)
        replays.pass_through(rows)
        other = route(
            (each for _, each in replays.batch(("a", position, 1)).tapped(replays.runs)),
            replays.bank,
            MODEL,
        )
        if other is not None:
            wanted.carry_out(other)
        assert torch.equal(rows.stream, wanted.stream)
        half = replays.residents.step % 2
        stamped = tables.row_stamps[half, replays.residents.output_of(_key("resid_post.0")), 0]
        assert (stamped == replays.residents.step) == (position < 6)
    written = ("clock", "rows", "row_stamps", "changes", "change_stamps", "sizes")
    for name, table in before.items():
        if name not in written:
            assert torch.equal(getattr(tables, name), table), name
    assert tables.clock.tolist() == [5, 1]


def _copy(of: Any) -> Any:
    return of.clone() if isinstance(of, torch.Tensor) else of


def _key(name: str) -> SiteKey:
    return next(key for key in MODEL.layout.sites if str(key.site) == name)


def test_what_goes_on_is_taken_out_as_it_was_planned(replays: Replays) -> None:
    """The planner moves its plan on, and the tables are read into the same plan."""
    run = make_run(change(Add(constant(2.0)), "resid_post.0"), read("resid_post.0"))
    assert not replays.begin(run)
    planner = Planner(replays.bank, MODEL)
    replays.runs["a"].reached = 3
    batch = replays.batch(("a", 3, 1))
    step = planner.plan(batch, replays.runs)
    assert step is not None
    replays.residents.write(batch, replays.runs)
    replayed = ReplayedStep(step, batch, replays.runs, replays.residents, MODEL)
    for position in (3, 4, 5):
        if position > 3:
            batch = replays.batch(("a", position, 1))
            assert planner.goes_on(batch)
            step = planner.plan(batch, replays.runs)
            replays.residents.go_on()
        assert step is not None
        rows = Batch.random(1)
        wanted = rows.stream + 2.0
        replays.pass_through(rows)
        assert replayed.take()
        (block,) = step.blocks
        assert block.positions.tolist() == [position]
        torch.testing.assert_close(block.columns[0].work.rows, wanted)
        assert step.receipts is not None
        assert step.receipts.positions.tolist() == [position]
        assert step.receipts.changes[0, [0, 2]].tolist() == [1.0, 1.0]


def test_vectors_that_have_moved_are_found_where_they_are(replays: Replays) -> None:
    gone = start(replays.bank, 9, make_run(change(Add(constant(9.0)), "resid_post.0")))
    run = make_run(change(Replace(ROWS), "resid_post.0", where=at((0, 1), (1, 3))))
    assert not replays.begin(run)
    gone.end(replays.bank)
    replays.bank._close_gaps()
    replays.step(("a", 2, 1))


# What does not fit.


def test_a_pass_that_left_a_tap_out_is_not_proven(replays: Replays) -> None:
    """Of a row, and of an edit at one of its sites."""
    for run in (make_run(read("final_norm")), make_run(change(Add(constant(1.0)), *EVERYWHERE))):
        assert not replays.begin(run)
    for name in ("a", "b"):
        batch = replays.batch((name, 3, 1))
        replays.runs[name].reached = 3
        planned = replays.routed(batch)
        for places, proven in ((replays.places, True), (replays.places[:-1], False)):
            replays.residents.write(batch, replays.runs)
            rows = Batch.random(1)
            tensors = ((rows.q, None), (rows.hidden, rows.residual), (rows.normed, None))
            for place, (hidden, residual) in zip(places, tensors, strict=False):
                triton_taps.tap_rows(
                    hidden, residual, place, replays.residents.tables, replays.bank.numbers
                )
            replayed = ReplayedStep(planned, batch, replays.runs, replays.residents, MODEL)
            assert bool(replayed.take()) == proven


CROWD = [read("resid_post.0", where=at((i, i + 1))) for i in range(5)]
MANY = np.eye(WIDTH, dtype=np.float32)[np.arange(17) % WIDTH]


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (make_run(*CROWD), "the run has 5 captures, and there is room for 4"),
        (
            make_run(*[change(Add(constant(1.0)), "resid_post.0")] * 5),
            "the run has 5 edits, and there is room for 4",
        ),
        (
            make_run(change(Add(np.ones(HEAD_WIDTH)), "q.0", heads=(0,))),
            "an edit is of heads",
        ),
        (
            make_run(change(Add(constant(1.0)), "resid_post.0", where=at((0, 9), token_ids=[3]))),
            "an edit is where certain tokens are",
        ),
    ],
    ids=["captures", "edits", "heads", "tokens"],
)
def test_what_does_not_fit_is_said(replays: Replays, run: Run, why: str) -> None:
    assert replays.begin(run) == why
    batch = replays.batch(("a", 0, 1))
    assert replays.residents.why_not(batch, replays.runs) == (
        "it has a run that is not in the tables"
    )


def test_rows_that_are_too_wide_or_too_many_are_said(bank: VectorBank) -> None:
    sizes = TapSizes(sites=SIZES.sites, width=WIDTH, rows=2, runs=4)
    replays = Replays(bank, sizes=sizes)
    wide = "rows of q.0 are 6 wide, and there is room for 4"
    assert replays.begin(make_run(read("q.0"))) == wide
    assert not replays.begin(make_run(read("resid_post.0")))
    assert replays.residents.why_not(replays.batch(("b", 0, 3)), replays.runs) == (
        "it has 3 rows, and the tables have room for 2"
    )
    assert not replays.residents.why_not(replays.batch(("b", 0, 2)), replays.runs)


def test_slots_are_free_again_when_their_runs_have_ended(bank: VectorBank) -> None:
    sizes = TapSizes(sites=SIZES.sites, width=WIDTH, rows=8, runs=2, slots=2)
    replays = Replays(bank, sizes=sizes)
    stream, norm = make_run(read("resid_post.0")), make_run(read("final_norm"))
    assert not replays.begin(stream, norm)
    assert replays.begin(stream) == "all 2 slots for runs are taken"
    replays.residents.end("a")
    assert replays.begin(make_run(read("mlp_out.0", "resid_pre.1"))) == (
        "2 more sites are read, and 1 of 2 slots are free"
    )
    assert not replays.begin(make_run(read("mlp_out.0", "final_norm")))
    replays.step(("e", 0, 2), ("b", 1, 1))
    for name in ("b", "e", "a"):
        replays.residents.end(name)
    assert not replays.begin(stream, stream)


def test_of_more_ranges_than_there_is_room_for_the_last_ones_are_served(replays: Replays) -> None:
    ranges = at((0, 1), (2, 4), (6, 7), (9, 12))
    replace = change(Replace(np.arange(28, dtype=np.float32).reshape(7, 4)), "resid_post.0")
    run = make_run(
        change(replace.operation, "resid_post.0", where=ranges),
        read("resid_post.0", where=ranges),
    )
    assert not replays.begin(run)
    for position in (0, 3):
        why = replays.residents.why_not(replays.batch(("a", position, 1)), replays.runs)
        assert why == "it has a run of which the tables hold later positions alone"
    for position in (6, 9, 10, 11):
        replays.step(("a", position, 1))


def test_a_run_that_ends_leaves_nothing_to_the_next_in_its_slot(replays: Replays) -> None:
    edits: Sequence[Operation] = [Add(constant(5.0)), Replace(ROWS[:1])]
    steered = make_run(*(change(each, *EVERYWHERE) for each in edits), read(*EVERYWHERE))
    for _ in range(SIZES.runs):
        assert not replays.begin(steered)
    for name in tuple(replays.runs):
        replays.residents.end(name)
    assert not replays.begin(make_run(read("resid_post.0")))
    planned, _ = replays.step(("e", 0, 2))
    assert planned.receipts is None
