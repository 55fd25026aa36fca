"""The self-test finds every kind of fault, names its hook point, and withdraws nothing else."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Features,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.selftest import self_test
from actserve_server.engine.selftest_checks import difference
from tests.unit.tiny_engine import READ_ONLY, Batch, Edit, Tap, TinyEngine, honest
from tests.unit.tiny_faults import (
    Misreading,
    Unnormed,
    at_all_positions,
    changing,
    in_company,
    layer_before,
    none,
    not_a_number,
    one_position_late,
    reading,
    scaled,
    strengthened,
    swapped,
    to_a_copy,
    to_the_next_run,
    to_the_next_run_as_well,
    token_after,
    token_before,
    undelivered,
    without_attention,
    without_mlp,
)

CHANGEABLE = [point for point in HookPoint if point is not HookPoint.LOGITS]
LAYERED = [point for point in HookPoint if point not in LAYERLESS]
SOME = (HookPoint.RESID_PRE, HookPoint.V, HookPoint.MLP_OUT, HookPoint.FINAL_NORM)
"""A stream, a part of attention, a branch, and the end."""

UNSERVED, UNCHANGEABLE = "unserved", "unchangeable"


async def withdrawn(engine: TinyEngine) -> Mapping[HookPoint, tuple[str, str]]:
    """What the self-test withdraws, and why."""
    result = await self_test(engine)
    assert result.runs == len(engine.runs)
    lost = {}
    for point, before in engine.info.hook_points.items():
        after = result.info.hook_points[point]
        if after != before:
            reason = result.failures[point]
            kind = UNSERVED if after.unserved else UNCHANGEABLE
            assert getattr(after, kind) == f"failed the self-test: {reason}"
            assert (after.width, after.heads) == (before.width, before.heads)
            lost[point] = (kind, reason)
    assert lost.keys() == result.failures.keys()
    return lost


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong at one hook point, and what becomes of it."""

    name: str
    tap: Tap
    withdrawn: str
    says: str
    """What the reason begins with, as a regular expression."""
    points: Sequence[HookPoint] = SOME

    def __str__(self) -> str:
        return self.name


def wrong_rows(name: str, tap: Tap, says: str, points: Sequence[HookPoint] = SOME) -> Fault:
    return Fault(name=name, tap=tap, withdrawn=UNSERVED, says=says, points=points)


def wrong_changes(name: str, tap: Tap, says: str, points: Sequence[HookPoint] = SOME) -> Fault:
    return Fault(name=name, tap=tap, withdrawn=UNCHANGEABLE, says=says, points=points)


FAULTS = [
    wrong_rows(
        "rows of the token before",
        reading(token_before),
        "at .* row 3 does not depend on its own token",
        [*HookPoint],
    ),
    wrong_rows(
        "rows of the token after",
        reading(token_after),
        "with other tokens after it, at .* row ",
    ),
    wrong_rows(
        "rows of another layer", reading(layer_before), r".*\.1 has the rows of .*\.0", LAYERED
    ),
    wrong_rows(
        "rows of another run", in_company(reading(swapped)), "beside other runs, at .* row "
    ),
    wrong_rows("rows missing", undelivered, "at .* row 6 is missing or not finite"),
    wrong_rows("rows missing in company", in_company(undelivered), "beside other runs, at .* row "),
    wrong_rows("rows not a number", reading(not_a_number), "at .* row 2 is missing or not finite"),
    wrong_rows(
        "rows not a number in company",
        in_company(reading(not_a_number)),
        "beside other runs, at .* row ",
    ),
    wrong_changes("changes not made", changing(none), "after add, at .* row "),
    wrong_changes("changes at all positions", changing(at_all_positions), "after add, at .* row "),
    wrong_changes("changes a position late", changing(one_position_late), "after add, at .* row "),
    wrong_changes("changes of another run", changing(to_the_next_run), ".* is off by "),
    wrong_changes("changes of another run too", changing(to_the_next_run_as_well), ".* is off by "),
    wrong_changes("changes of a copy", to_a_copy, "after replace at .* moves by ", CHANGEABLE),
]


async def check(engine: TinyEngine, point: HookPoint, fault: Fault) -> None:
    """Only `point` is withdrawn, for a reason that names a site of it."""
    lost = await withdrawn(engine)
    assert {at: kind for at, (kind, _) in lost.items()} == {point: fault.withdrawn}, lost
    _, reason = lost[point]
    assert re.match(fault.says, reason), reason
    assert str(point) in reason


@pytest.mark.parametrize(
    ("fault", "point"), [(fault, point) for fault in FAULTS for point in fault.points], ids=str
)
async def test_a_fault_withdraws_its_hook_point_and_no_other(
    fault: Fault, point: HookPoint
) -> None:
    await check(TinyEngine({point: fault.tap}), point, fault)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_rounding_hides_no_such_fault(fault: Fault) -> None:
    engine = TinyEngine({HookPoint.V: fault.tap}, element_type=ElementType.BF16)
    await check(engine, HookPoint.V, fault)


@pytest.mark.parametrize("point", LAYERED)
async def test_changes_of_a_copy_show_at_any_later_site(point: HookPoint) -> None:
    others = {other: "not enabled" for other in HookPoint if other is not point}
    fault = wrong_changes("", to_a_copy, f"after replace at {point}.1, {point}.2 moves by ")
    await check(TinyEngine({point: to_a_copy}, unserved=others), point, fault)


@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
@pytest.mark.parametrize(
    ("point", "change"),
    [
        (HookPoint.RESID_MID, without_attention),
        (HookPoint.RESID_POST, without_mlp),
        (HookPoint.EMBEDDING, scaled),
        (HookPoint.RESID_PRE, scaled),
        (HookPoint.ATTN_OUT, scaled),
        (HookPoint.RESID_MID, scaled),
        (HookPoint.MLP_OUT, scaled),
        (HookPoint.RESID_POST, scaled),
    ],
)
async def test_what_does_not_add_up_is_not_served(
    point: HookPoint,
    change: Misreading,
    element_type: ElementType,
) -> None:
    fault = wrong_rows("", reading(change), ".* is off from ")
    await check(TinyEngine({point: fault.tap}, element_type=element_type), point, fault)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "point",
    [
        HookPoint.RESID_PRE,
        HookPoint.ATTN_OUT,
        HookPoint.RESID_MID,
        HookPoint.RESID_POST,
    ],
)
async def test_one_layer_that_does_not_add_up_is_enough(point: HookPoint, layer: int) -> None:
    def tap(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edited, _ = honest(batch, site, rows)
        return edited, edited * np.float32(1.1 if site.layer == layer else 1)

    fault = wrong_rows("", tap, rf".*{point}\.{layer}")
    await check(TinyEngine({point: tap}), point, fault)


async def test_two_branches_that_do_not_add_up_are_both_found() -> None:
    # As far as it shows in resid_mid alone, that could be to blame instead.
    wrong = {HookPoint.ATTN_OUT: reading(scaled), HookPoint.MLP_OUT: reading(scaled)}
    lost = await withdrawn(TinyEngine(wrong))
    assert {at: kind for at, (kind, _) in lost.items()} == dict.fromkeys(
        [HookPoint.ATTN_OUT, HookPoint.RESID_MID, HookPoint.MLP_OUT], UNSERVED
    )


async def test_where_a_sum_cannot_tell_all_its_sites_are_withdrawn() -> None:
    # The last stream is in no sum without what the last MLP adds.
    fault = reading(scaled)
    lost = await withdrawn(TinyEngine({HookPoint.RESID_POST: fault}, layer_count=1))
    assert {at: kind for at, (kind, _) in lost.items()} == {
        HookPoint.MLP_OUT: UNSERVED,
        HookPoint.RESID_POST: UNSERVED,
    }


OPERATIONS = [
    ("add", Add),
    ("ablate", Ablate),
    ("project", Project),
    ("clamp", Clamp),
    ("replace", Replace),
    ("swap", Swap),
    ("zero", Zero),
    ("mean", Mean),
    ("change features", Features),
]


@pytest.mark.parametrize("element_type", ElementType)
@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
async def test_one_operation_that_moves_rows_too_little_is_enough(
    name: str, operation: type[Operation], element_type: ElementType
) -> None:
    says = rf"after {name}, at q\.1 "
    if operation is Replace:
        # By which rows are written at every layer.
        says += r"|at q\.0 what was written is off by "
    fault = wrong_changes("", strengthened(operation, 0.7), says)
    await check(TinyEngine({HookPoint.Q: fault.tap}, element_type=element_type), HookPoint.Q, fault)


@pytest.mark.parametrize(
    ("point", "strength", "element_type"),
    [
        *((point, 0.7, element_type) for point in CHANGEABLE for element_type in ElementType),
        *((point, strength, ElementType.BF16) for point in SOME for strength in (0.5, 1.1, 1.6)),
    ],
)
async def test_rounding_hides_no_addition_of_another_strength(
    point: HookPoint, strength: float, element_type: ElementType
) -> None:
    fault = wrong_changes("", strengthened(Add, strength), f"after add( relative)?, at {point}")
    await check(TinyEngine({point: fault.tap}, element_type=element_type), point, fault)


@pytest.mark.parametrize("point", HookPoint)
@pytest.mark.parametrize(
    ("element_type", "scale"),
    [
        *[(element_type, 0.9) for element_type in ElementType],
        (ElementType.BF16, 0.6),
        (ElementType.BF16, 1.1),
        (ElementType.BF16, 1.45),
    ],
)
async def test_rounding_hides_no_rows_of_another_scale(
    point: HookPoint, scale: float, element_type: ElementType
) -> None:
    def other_scale(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
        return rows * np.float32(scale)

    says = r".* is off from |at .* rows are read as |at logits they are "
    fault = wrong_rows("", reading(other_scale), says)
    await check(TinyEngine({point: fault.tap}, element_type=element_type), point, fault)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("point", [HookPoint.V, HookPoint.MLP_ACT])
async def test_one_layer_of_another_scale_is_enough(point: HookPoint, layer: int) -> None:
    """Though operations are tried at the middle one alone."""

    def scaled_there(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
        return scaled(batch, site, rows) if site.layer == layer else rows

    fault = wrong_rows("", reading(scaled_there), rf".*{point}\.{layer}")
    engine = TinyEngine({point: fault.tap}, element_type=ElementType.BF16)
    await check(engine, point, fault)


@pytest.mark.parametrize("element_type", ElementType)
async def test_a_small_branch_of_another_scale_is_found(element_type: ElementType) -> None:
    """Whose share of the stream is less than what rounding makes of a whole row."""

    def small(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edited, _ = honest(batch, site, rows / 16)
        return edited, edited * np.float32(0.9)

    fault = wrong_rows("", small, ".* is off from ")
    engine = TinyEngine({HookPoint.ATTN_OUT: fault.tap}, element_type=element_type)
    await check(engine, HookPoint.ATTN_OUT, fault)


@pytest.mark.parametrize("drift", [0.05, 0.1])
async def test_rows_that_drift_in_length_from_batch_to_batch_keep_everything(drift: float) -> None:
    """As those of ill-conditioned models do; one of the changed ones is much longer than others."""

    def drifting(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longer = rows.copy()
        for span in batch.spans:
            longer[span[2]] *= 50
        signs = np.where(np.arange(len(rows)) % 2, -1, 1)[:, None]
        drifted = longer * (1 + drift * signs * (len(batch.runs) > 1))
        return honest(batch, site, drifted.astype(np.float32))

    engine = TinyEngine({HookPoint.V: drifting}, element_type=ElementType.BF16)
    assert not await withdrawn(engine)


@pytest.mark.parametrize("element_type", ElementType)
async def test_a_direction_that_was_not_normed_is_found(element_type: ElementType) -> None:
    def unnormed(batch: Batch, site: Site) -> Iterator[Edit]:
        for where, asked in batch.edits(site):
            yield where, Unnormed(asked.direction) if isinstance(asked, Ablate) else asked

    fault = wrong_changes("", changing(unnormed), r"after ablate, at resid_mid\.1 row ")
    engine = TinyEngine({HookPoint.RESID_MID: fault.tap}, element_type=element_type)
    await check(engine, HookPoint.RESID_MID, fault)


async def test_several_faults_are_all_found() -> None:
    lost = await withdrawn(
        TinyEngine(
            {
                HookPoint.RESID_PRE: changing(none),
                HookPoint.K: in_company(reading(swapped)),
                HookPoint.Z: reading(layer_before),
                HookPoint.MLP_OUT: reading(scaled),
                HookPoint.FINAL_NORM: to_a_copy,
            }
        )
    )
    assert {at: kind for at, (kind, _) in lost.items()} == {
        HookPoint.RESID_PRE: UNCHANGEABLE,
        HookPoint.K: UNSERVED,
        HookPoint.Z: UNSERVED,
        HookPoint.MLP_OUT: UNSERVED,
        HookPoint.FINAL_NORM: UNCHANGEABLE,
    }


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([10.0, -3.3], None),  # As far as ill-conditioned models move a row in 16 bits.
        ([10.0, -6.0], "row 1 is off by 0.6 of its norm; the limit is 0.5"),
        ([8.6, 3.6], "row 1 is that of another token"),
        ([np.inf, 0.0], "row 1 is missing or not finite"),
    ],
)
def test_a_row_may_move_by_as_much_as_rounding_moves_it_but_not_to_another(
    row: list[float], says: str | None
) -> None:
    wanted = np.array([[0.0, 10.0], [10.0, 0.0], [8.0, 5.0]], np.float32)
    rows = wanted.copy()
    rows[1] = row
    assert difference(rows, wanted, wanted, 0.5) == says


class Failing(TinyEngine):
    """Fails every run that changes something, while others never end."""

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(super().run(run)) as events:
            async for event in events:
                if run.interventions:
                    raise ActserveError(Reason.INTERVENTION_INCOMPLETE, "a change was lost")
                if len(self.runs) > 2:
                    await asyncio.Event().wait()
                yield event


async def test_a_run_that_fails_fails_the_test_and_leaves_none_behind() -> None:
    engine = Failing()
    with pytest.raises(ActserveError, match="a change was lost"):
        await self_test(engine)
    assert len(engine.runs) > 2
    assert not engine.running


async def test_cancelling_the_test_leaves_no_run_behind() -> None:
    class Waiting(TinyEngine):
        async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
            async with aclosing(super().run(run)) as events:
                async for event in events:
                    if len(self.running) > 1:
                        started.set()
                        await asyncio.Event().wait()
                    yield event

    started = asyncio.Event()
    engine = Waiting()
    test = asyncio.create_task(self_test(engine))
    await started.wait()
    test.cancel()
    with pytest.raises(asyncio.CancelledError):
        await test
    assert not engine.running


@pytest.mark.parametrize("layer_count", [1, 2, 3])
@pytest.mark.parametrize("element_type", ElementType)
async def test_a_faultless_engine_keeps_everything(
    element_type: ElementType, layer_count: int
) -> None:
    assert not await withdrawn(TinyEngine(element_type=element_type, layer_count=layer_count))


@pytest.mark.parametrize("vocabulary_size", [2, 3, 20])
async def test_a_vocabulary_of_few_tokens_will_do(vocabulary_size: int) -> None:
    engine = TinyEngine(vocabulary_size=vocabulary_size)
    assert not await withdrawn(engine)
    assert {token for run in engine.runs for token in run.token_ids} <= {*range(vocabulary_size)}


async def test_layers_that_add_nothing_will_do() -> None:
    def nothing(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return honest(batch, site, rows if site.layer == 1 else np.zeros_like(rows))

    assert not await withdrawn(TinyEngine({HookPoint.ATTN_OUT: nothing}))


@pytest.mark.parametrize("point", HookPoint)
async def test_a_hook_point_served_alone_will_do(point: HookPoint) -> None:
    others = {other: "not enabled" for other in HookPoint if other is not point}
    engine = TinyEngine(unserved=others)
    assert not await withdrawn(engine)
    assert engine.runs


async def test_a_server_without_hook_points_has_nothing_to_test() -> None:
    engine = TinyEngine(unserved=dict.fromkeys(HookPoint, "not enabled"))
    assert not await withdrawn(engine)
    assert not engine.runs


async def test_what_is_not_offered_is_not_tried_and_keeps_its_reason() -> None:
    engine = TinyEngine(
        # What would be found if it were tried.
        {HookPoint.Z: undelivered, HookPoint.Q: changing(none)},
        unserved={HookPoint.Z: "not enabled"},
        unchangeable={HookPoint.Q: "fused"},
    )
    assert not await withdrawn(engine)
    read = {site.hook_point for run in engine.runs for c in run.captures for site in c.sites}
    changed = {
        site.hook_point for run in engine.runs for c in run.interventions for site in c.sites
    }
    assert read == {*HookPoint} - {HookPoint.Z}
    assert changed == {*HookPoint} - {HookPoint.Z, HookPoint.Q, HookPoint.LOGITS}
    points = (await self_test(engine)).info.hook_points
    assert points[HookPoint.Z].unserved == "not enabled"
    assert points[HookPoint.Q].unchangeable == "fused"
    assert points[HookPoint.LOGITS].unchangeable == READ_ONLY
