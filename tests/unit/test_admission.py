"""What runs at once stays within its limits, in order, and whatever happens nothing leaks."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.conditions import Condition
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import Limits
from actserve_server.domain.operations import Mean, Project
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probes import Aggregator, Probe, RollingMean, ScoreReduction
from actserve_server.domain.runs import Capture, Finished, Intervention, Rows, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.footprint import CAPTURE_TABLE_BYTES, LOGPROB_BYTES, TOKEN_BYTES

ALL = Spans(((0, NO_END),))
SITES = (Site(HookPoint.RESID_POST, 0), Site(HookPoint.RESID_POST, 1))
ROW_BYTES = 16 * 4 * len(SITES)


def run(
    name: object, tokens: int = 4, max_tokens: int = 1, rows: bool = True, tenant: str = ""
) -> Run:
    return Run(
        tenant=tenant,
        id=str(name),
        token_ids=tuple(range(tokens)),
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
        captures=(Capture(SITES, Selection(ALL)),) if rows else (),
    )


def admitted(fake: FakeEngine | None = None, **limits: Any) -> AdmittedEngine:
    return AdmittedEngine(fake or FakeEngine(), AdmissionLimits(**limits))


async def drain(engine: AdmittedEngine, *runs: Run) -> None:
    async with aclosing(engine.run_all(runs)) as events:
        async for _ in events:
            pass


def is_free(engine: AdmittedEngine) -> bool:
    held = (engine.running, engine.waiting, engine.reserved_bytes, engine.vector_bytes)
    return (*held, engine.workspace_bytes, engine.report_bytes) == (0,) * 6


VECTOR_BYTES = 16 * 4


def patched(
    name: object, *seeds: int, tenant: str = "", tokens: int = 1, interventions: Any = None
) -> Run:
    """A run in which as many vectors, a new one for each seed, replace rows."""
    return Run(
        tenant=tenant,
        id=str(name),
        token_ids=tuple(range(tokens)),
        sampling=Sampling(temperature=0.0, max_tokens=1),
        interventions=interventions or patches(*seeds),
    )


def patches(*seeds: int) -> tuple[Intervention, ...]:
    return tuple(
        Intervention((SITES[0],), Selection(ALL), Mean(np.full(16, seed + 1, np.float32)))
        for seed in seeds
    )


@pytest.mark.parametrize(
    ("spans", "tokens", "max_tokens", "rows"),
    [
        (ALL, 4, 1, 4),
        (ALL, 4, 10, 13),
        (Spans(((3, 4),)), 4, 10, 1),
        (Spans(((4, NO_END),)), 4, 10, 9),
    ],
)
def test_the_most_rows_a_run_can_produce_are_reserved(
    spans: Spans, tokens: int, max_tokens: int, rows: int
) -> None:
    planned = Run(
        id="0",
        token_ids=tuple(range(tokens)),
        sampling=Sampling(max_tokens=max_tokens),
        captures=(Capture(SITES, Selection(spans)),),
    )
    assert admitted().capture_bytes(planned) == rows * ROW_BYTES


def test_every_site_is_reserved_for_by_its_own_width() -> None:
    sites = (Site(HookPoint.K, 0), Site(HookPoint.MLP_ACT, 1), Site(HookPoint.LOGITS))
    planned = Run(id="0", token_ids=(1, 2), captures=(Capture(sites, Selection(ALL)),))
    assert admitted().capture_bytes(planned) == 2 * (8 + 24 + 260) * 4


def test_positions_by_token_id_reserve_for_every_generated_token() -> None:
    planned = Run(
        id="0",
        token_ids=(1, 2, 3, 2),
        sampling=Sampling(max_tokens=10),
        captures=(Capture(SITES, Selection(Spans(((1, 2), (3, NO_END))), frozenset({2}))),),
    )
    assert admitted().capture_bytes(planned) == (2 + 9) * ROW_BYTES


async def test_runs_in_flight_stay_below_the_limit() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    engine = admitted(fake, max_running=3)
    await drain(engine, *(run(i) for i in range(20)))
    assert (fake.counters.most_running, fake.counters.started) == (3, 20)
    assert is_free(engine)


async def test_reserved_bytes_stay_below_the_budget() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    engine = admitted(fake, capture_budget_bytes=10 * ROW_BYTES)
    await drain(engine, *(run(i, tokens=4) for i in range(20)))
    assert fake.counters.most_running == 2
    assert is_free(engine)


async def test_a_large_run_is_not_overtaken_for_ever_by_small_ones() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    engine = admitted(fake, capture_budget_bytes=10 * ROW_BYTES)
    small = [asyncio.create_task(drain(engine, run(i, tokens=4))) for i in range(2)]
    await asyncio.sleep(0)
    large = asyncio.create_task(drain(engine, run("large", tokens=10)))
    await asyncio.sleep(0)
    later = [asyncio.create_task(drain(engine, run(f"later {i}", tokens=4))) for i in range(6)]
    await large
    assert not any(task.done() for task in later)
    await asyncio.gather(*small, *later)
    assert is_free(engine)


async def test_cancelling_a_large_waiting_run_lets_those_behind_it_in() -> None:
    fake = FakeEngine(token_delay_s=0.25)
    engine = admitted(fake, capture_budget_bytes=10 * ROW_BYTES)
    first = asyncio.create_task(drain(engine, run("first", tokens=4)))
    await asyncio.sleep(0.01)
    large = asyncio.create_task(drain(engine, run("large", tokens=10)))
    await asyncio.sleep(0.01)
    behind = asyncio.create_task(drain(engine, run("behind", tokens=4)))
    await asyncio.sleep(0.01)
    assert fake.counters.running == {"first"}
    large.cancel()
    await asyncio.sleep(0.01)
    assert fake.counters.running == {"first", "behind"}
    await asyncio.gather(first, behind)
    assert is_free(engine)


@pytest.mark.parametrize(("limit", "budget"), [(7 * ROW_BYTES, 1 << 30), (1 << 30, 7 * ROW_BYTES)])
def test_a_run_that_could_never_fit_is_refused(limit: int, budget: int) -> None:
    fake = FakeEngine(limits=Limits(max_sequence_tokens=100, max_capture_bytes=limit))
    engine = admitted(fake, capture_budget_bytes=budget)
    with pytest.raises(ActserveError) as caught:
        engine.run_all([run(0, tokens=7), run(1, tokens=8)])
    assert caught.value.reason is Reason.CAPTURE_TOO_LARGE
    assert caught.value.metadata == {
        "bytes": str(8 * ROW_BYTES),
        "limit": str(7 * ROW_BYTES),
        "sequence_index": "1",
    }


@pytest.mark.parametrize("max_queue", [0, 1, 2])
async def test_a_call_beyond_the_queue_is_refused(max_queue: int) -> None:
    engine = admitted(FakeEngine(token_delay_s=0.05), max_running=1, max_queue=max_queue)
    tasks = [asyncio.create_task(drain(engine, run(i))) for i in range(1 + max_queue)]
    await asyncio.sleep(0.01)
    assert engine.waiting == max_queue
    with pytest.raises(ActserveError) as caught:
        engine.run_all([run("late")])
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s
    await asyncio.gather(*tasks)
    await drain(engine, run("later"))


async def test_draining_refuses_new_calls_and_ends_when_the_last_has() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.02), max_running=1)
    task = asyncio.create_task(drain(engine, run(0), run(1)))
    await asyncio.sleep(0.01)
    engine.drain()
    with pytest.raises(ActserveError) as caught:
        engine.run_all([run(2)])
    assert caught.value.reason is Reason.DRAINING
    await engine.wait_idle()
    await task
    assert is_free(engine)


async def test_an_engine_that_fails_frees_what_was_reserved() -> None:
    fake = FakeEngine()
    fake.faults.incomplete = True
    engine = admitted(fake)
    with pytest.raises(ActserveError):
        await drain(engine, *(run(i) for i in range(5)))
    assert is_free(engine)


@pytest.mark.parametrize("seed", range(5))
async def test_no_storm_of_cancellations_leaks_or_deadlocks(seed: int) -> None:
    rng = random.Random(seed)
    fake = FakeEngine(token_delay_s=0.0005)
    engine = admitted(fake, max_running=4, capture_budget_bytes=30 * ROW_BYTES)
    tasks = []
    for call in range(60):
        runs = [
            run(f"{call}-{i}", tokens=rng.randint(1, 10), max_tokens=rng.randint(1, 5))
            for i in range(rng.randint(1, 8))
        ]
        tasks.append(asyncio.create_task(drain(engine, *runs)))
    while not all(task.done() for task in tasks):
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        assert engine.running <= 4
        assert engine.reserved_bytes <= 30 * ROW_BYTES
        await asyncio.sleep(0.0005)
    assert is_free(engine)
    assert not fake.counters.running
    await asyncio.wait_for(engine.wait_idle(), 1)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never was so")


async def test_a_run_that_nobody_reads_ends_and_holds_its_bytes_alone() -> None:
    engine = admitted(max_running=1)
    async with aclosing(engine.run_all([run("unread", tokens=30)])) as events:
        await anext(events)
        await until(lambda: engine.running == 0)
        assert engine.reserved_bytes == 30 * ROW_BYTES
        await drain(engine, run("another"))
        read = [event async for _, event in events]
    assert isinstance(read[-1], Finished)
    assert is_free(engine)


async def test_what_ends_a_run_comes_after_what_it_gave() -> None:
    fake = FakeEngine()
    fake.faults.incomplete = True
    engine = admitted(fake)
    events = engine.run(run("lost", tokens=30))
    kinds = [type(await anext(events))]
    await until(lambda: engine.running == 0)
    with pytest.raises(ActserveError, match="lost") as raised:
        kinds += [type(event) async for event in events]
    assert raised.value.reason is Reason.CAPTURE_INCOMPLETE
    assert kinds[0] is Rows
    assert is_free(engine)


async def test_a_tenant_takes_no_more_than_its_share_and_others_pass_it_by() -> None:
    fake = FakeEngine(token_delay_s=0.05)
    engine = admitted(fake, max_running=4, share=0.5)
    greedy = asyncio.create_task(drain(engine, *(run(f"a{n}", tenant="a") for n in range(6))))
    await until(lambda: engine.running == 2)
    await drain(engine, run("b", tenant="b"))
    assert not greedy.done()
    await greedy
    assert fake.counters.most_running == 3
    assert is_free(engine)


async def test_the_bytes_of_one_call_are_a_share_where_there_are_no_tenants() -> None:
    fake = FakeEngine(token_delay_s=0.05)
    engine = admitted(fake, capture_budget_bytes=8 * ROW_BYTES, share=0.5)
    greedy = asyncio.create_task(drain(engine, *(run(f"a{n}", tokens=2) for n in range(6))))
    await until(lambda: engine.reserved_bytes == 4 * ROW_BYTES)
    await drain(engine, run("b", tokens=4))
    assert not greedy.done()
    await greedy
    assert fake.counters.most_running == 3


async def test_the_runs_of_one_call_are_not_where_there_are_no_tenants() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    await drain(admitted(fake, max_running=4, share=0.5), *(run(n) for n in range(8)))
    assert fake.counters.most_running == 4


@pytest.mark.parametrize("tenant", ["", "a"])
async def test_a_share_below_one_run_is_one_run(tenant: str) -> None:
    engine = admitted(max_running=1, capture_budget_bytes=4 * ROW_BYTES, share=0.1)
    await drain(engine, *(run(n, tenant=tenant) for n in range(3)))
    assert is_free(engine)


async def test_a_large_run_does_not_keep_its_tenant_from_running_what_captures_nothing() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.2), capture_budget_bytes=8 * ROW_BYTES, share=0.5)
    large = asyncio.create_task(drain(engine, run("large", tokens=8, tenant="a")))
    await until(lambda: engine.running == 1)
    await drain(engine, run("small", rows=False, tenant="a"))
    await large


async def test_a_tenant_fills_its_share_of_the_queue_and_no_more() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.2), max_running=1, max_queue=4, share=0.5)
    calls = [asyncio.create_task(drain(engine, run(n, tenant="a"))) for n in range(3)]
    await until(lambda: engine.waiting == 2)
    with pytest.raises(ActserveError, match="2 wait") as refused:
        engine.run_all([run("one more", tenant="a")])
    assert refused.value.reason is Reason.QUEUE_FULL
    await drain(engine, run("another's", tenant="b"))
    await asyncio.gather(*calls)
    assert is_free(engine)


# What a step takes of the device, and what else waits to be read.


def step_bytes(tokens: int) -> int:
    """What so many tokens of `run` take in a step."""
    return tokens * (ROW_BYTES + CAPTURE_TABLE_BYTES)


async def test_a_step_takes_no_more_of_the_device_than_the_budget() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    engine = admitted(fake, workspace_budget_bytes=step_bytes(10))
    await drain(engine, *(run(n, tokens=4) for n in range(6)))
    assert fake.counters.most_running == 2
    assert is_free(engine)


async def test_runs_that_do_not_fit_into_one_step_take_no_more_than_a_step() -> None:
    fake = FakeEngine(token_delay_s=0.01, step_tokens=10)
    engine = admitted(fake, workspace_budget_bytes=step_bytes(10))
    await drain(engine, *(run(n, tokens=4) for n in range(6)))
    assert fake.counters.most_running == 6


async def test_a_run_that_takes_nothing_of_a_step_waits_for_none_that_does() -> None:
    fake = FakeEngine(token_delay_s=0.05)
    engine = admitted(fake, workspace_budget_bytes=step_bytes(4))
    large = asyncio.create_task(drain(engine, run("large", tokens=4)))
    await until(lambda: engine.running == 1)
    await drain(engine, run("plain", rows=False))
    await large
    assert fake.counters.most_running == 2


async def test_no_caller_takes_more_than_its_share_of_a_step() -> None:
    fake = FakeEngine(token_delay_s=0.05)
    engine = admitted(fake, workspace_budget_bytes=step_bytes(8), share=0.5)
    greedy = asyncio.create_task(
        drain(engine, *(run(f"a{n}", tokens=2, tenant="a") for n in range(6)))
    )
    await until(lambda: engine.workspace_bytes == step_bytes(4))
    await drain(engine, run("b", tokens=4, tenant="b"))
    assert not greedy.done()
    await greedy
    assert fake.counters.most_running == 3


LOGPROBS = Run(
    id="0", token_ids=(1, 2), sampling=Sampling(temperature=0.0, max_tokens=5, logprobs=3)
)
LOGPROBS_BYTES = 5 * (TOKEN_BYTES + 3 * LOGPROB_BYTES)


async def test_what_waits_to_be_read_beside_rows_stays_below_its_budget() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    engine = admitted(fake, report_budget_bytes=2 * LOGPROBS_BYTES)
    await drain(engine, *(replace(LOGPROBS, id=str(n)) for n in range(6)))
    assert fake.counters.most_running == 2
    assert is_free(engine)


@pytest.mark.parametrize(
    ("wanted", "budget", "size"),
    [
        (run(0, tokens=4), "workspace_budget_bytes", step_bytes(4)),
        (LOGPROBS, "report_budget_bytes", LOGPROBS_BYTES),
    ],
)
def test_what_alone_takes_more_is_refused_with_the_numbers(
    wanted: Run, budget: str, size: int
) -> None:
    fake = FakeEngine()
    admitted(fake, **{budget: size}).check(wanted, 0)
    with pytest.raises(ActserveError, match=str(size)) as refused:
        admitted(fake, **{budget: size - 1}).check(wanted, 0)
    assert refused.value.reason is Reason.CAPTURE_TOO_LARGE
    assert refused.value.metadata["limit"] == str(size - 1)


# Vectors.


async def test_equal_vectors_are_counted_once_whichever_runs_have_them() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.05), vector_budget_bytes=3 * VECTOR_BYTES)
    # The samples of a call, which share their interventions, and another call's with equal ones.
    samples = patches(1, 2, 1)
    calls = [
        drain(engine, *(patched(f"a{n}", interventions=samples) for n in range(64))),
        drain(engine, patched("b", 2, 3)),
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    await until(lambda: engine.running == 65)
    assert engine.vector_bytes == 3 * VECTOR_BYTES
    await asyncio.gather(*tasks)
    assert is_free(engine)


async def test_what_a_score_keeps_is_counted_for_each_run_and_its_direction_once() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.05))
    probe = Probe(SITES[0], np.ones(16, np.float32))
    condition = Condition(probe, Aggregator(RollingMean(1024), ScoreReduction.MAX), above=0.0)
    (patch,) = patches(1)
    change = (replace(patch, when=condition),)
    calls = [drain(engine, patched(name, interventions=change)) for name in "abc"]
    tasks = [asyncio.create_task(call) for call in calls]
    await until(lambda: engine.running == 3)
    assert engine.vector_bytes == 2 * VECTOR_BYTES + 3 * 8 * 1025
    await asyncio.gather(*tasks)
    assert is_free(engine)
    tight = admitted(vector_budget_bytes=2 * VECTOR_BYTES + 8 * 1025 - 1)
    with pytest.raises(ActserveError, match=str(2 * VECTOR_BYTES + 8 * 1025)):
        tight.check(patched("d", interventions=change), 0)


async def test_the_keys_from_which_patterns_are_read_are_counted_for_each_run() -> None:
    engine = admitted(FakeEngine(token_delay_s=0.05))
    queries = (Site(HookPoint.Q, 1), Site(HookPoint.Q, 3))
    # Of four tokens, the last of which is generated, in two layers, half as wide as the stream.
    keys = 2 * 4 * VECTOR_BYTES // 2
    measured = (Capture(queries, Selection(ALL), QueryMeasures(4)),)
    calls = [replace(run(name, 3, 2), captures=measured) for name in "ab"]
    tasks = [asyncio.create_task(drain(engine, call)) for call in calls]
    await until(lambda: engine.running == 2)
    assert engine.vector_bytes == 2 * keys
    await asyncio.gather(*tasks)
    assert is_free(engine)
    with pytest.raises(ActserveError, match=str(keys)):
        admitted(vector_budget_bytes=keys - 1).check(calls[0], 0)


async def test_what_is_counted_is_what_the_engine_holds() -> None:
    """Of a projection a basis twice, and of vectors of any type float32."""
    engine = admitted(FakeEngine(token_delay_s=0.05))
    directions = Project(np.eye(3, 16, dtype=np.float32))
    change = Intervention(SITES, Selection(ALL), directions)
    task = asyncio.create_task(drain(engine, patched("p", interventions=(change,))))
    await until(lambda: engine.running == 1)
    assert engine.vector_bytes == 2 * 3 * VECTOR_BYTES
    await task


async def test_runs_wait_for_room_and_go_on_when_others_end() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    engine = admitted(fake, vector_budget_bytes=4 * VECTOR_BYTES)
    calls = [asyncio.create_task(drain(engine, patched(n, 2 * n, 2 * n + 1))) for n in range(20)]
    while not all(call.done() for call in calls):
        assert engine.vector_bytes <= 4 * VECTOR_BYTES
        await asyncio.sleep(0)
    assert (fake.counters.most_running, fake.counters.started) == (2, 20)
    assert is_free(engine)


def test_vectors_that_could_never_fit_are_refused_at_once_with_the_numbers() -> None:
    engine = admitted(vector_budget_bytes=4 * VECTOR_BYTES)
    with pytest.raises(ActserveError, match="sequence 1 have vectors of 320 bytes") as refused:
        engine.run_all([patched(0, 1, 2, 3, 4), patched(1, 1, 2, 3, 4, 5)])
    assert refused.value.reason is Reason.TOO_MANY_ROWS
    assert refused.value.field == ("interventions",)
    assert refused.value.metadata == {"bytes": "320", "limit": "256"}


@pytest.mark.parametrize("tenant", ["", "a"], ids=["a call", "a tenant"])
async def test_a_caller_holds_no_more_vectors_than_its_share_and_others_pass_it_by(
    tenant: str,
) -> None:
    engine = admitted(
        FakeEngine(token_delay_s=0.05), vector_budget_bytes=8 * VECTOR_BYTES, share=0.5
    )
    runs = (patched(f"a{n}", 2 * n, 2 * n + 1, tenant=tenant) for n in range(6))
    greedy = asyncio.create_task(drain(engine, *runs))
    await until(lambda: engine.vector_bytes == 4 * VECTOR_BYTES)
    other = [patched("b", 100, 101, 102, 103, tenant="b")]
    task = asyncio.create_task(drain(engine, *other))
    await until(lambda: engine.vector_bytes == 8 * VECTOR_BYTES)
    await task
    assert not greedy.done()
    await greedy
    assert is_free(engine)


async def test_a_caller_that_holds_nothing_may_have_one_run_beyond_its_share() -> None:
    engine = admitted(vector_budget_bytes=8 * VECTOR_BYTES, share=0.1)
    await drain(engine, *(patched(n, *range(8 * n, 8 * n + 8)) for n in range(3)))
    assert is_free(engine)


async def test_vectors_are_free_for_others_once_the_engine_has_finished_though_unread() -> None:
    engine = admitted(vector_budget_bytes=VECTOR_BYTES)
    async with aclosing(engine.run_all([patched("unread", 1, tokens=30)])) as events:
        await anext(events)
        await until(lambda: engine.running == 0)
        assert engine.vector_bytes == 0
        await drain(engine, patched("another", 2))
    assert is_free(engine)


async def test_runs_with_new_vectors_leave_nothing_behind_cancelled_or_not() -> None:
    engine = admitted(vector_budget_bytes=50 * VECTOR_BYTES)
    rng = random.Random(0)
    for start in range(0, 1000, 250):
        seeds = range(start, start + 250)
        calls = [asyncio.create_task(drain(engine, patched(n, n, n % 7))) for n in seeds]
        await asyncio.sleep(0)
        for call in rng.sample(calls, 100):
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert is_free(engine)
    vectors = engine._vectors
    assert not vectors._holders
    assert not vectors._own_holders
    assert not vectors._of.of
    assert not any(engine._last_vectors[0])
