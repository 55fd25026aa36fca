"""An engine that dies is started again, proven again, and serves nobody before."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Capture, Finished, Run, RunEvent, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import LogitTarget, TokenMatrix
from actserve_server.engine import restarting as restarting_module
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.api import Engine
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.restarting import (
    LATEST_RETRY_S,
    SOONEST_RETRY_S,
    RestartingEngine,
    RestartLimits,
    Restarts,
)
from tests.contract.harness import eventually

QUICK = RestartLimits(first_pause_s=0.001, longest_pause_s=0.004, starts=4)


def run(name: str = "run", tokens: int = 5, rows: int = 0) -> Run:
    captures = (Capture((Site(HookPoint.RESID_POST, 0),), Selection(Spans(((0, rows),)))),)
    return Run(
        id=name,
        token_ids=(1, 2, 3),
        captures=captures if rows else (),
        sampling=Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True),
    )


async def events(engine: Any, asked: Run) -> list[RunEvent]:
    async with aclosing(engine.run(asked)) as stream:
        return [event async for event in stream]


async def reason(call: Awaitable[Any]) -> ActserveError:
    with pytest.raises(ActserveError) as refused:
        await call
    return refused.value


@dataclass
class Workshop:
    """Where engines are made and proven, as a test tells it to."""

    fails: list[Exception] = field(default_factory=list)
    """What the next starts fail with, one each."""
    make: Callable[[], FakeEngine] = FakeEngine
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    may_prove: asyncio.Event = field(default_factory=asyncio.Event)
    unproven: str = ""
    """Why attention patterns are withdrawn."""
    made: list[FakeEngine] = field(default_factory=list)
    proving: int = 0
    starting: int = 0

    def __post_init__(self) -> None:
        self.may_start.set()
        self.may_prove.set()

    async def start(self) -> Engine:
        self.starting += 1
        await self.may_start.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.made.append(self.make())
        return self.made[-1]

    async def prove(self, engine: Engine) -> ModelInfo:
        self.proving += 1
        await self.may_prove.wait()
        await events(engine, run("self-test"))
        return replace(engine.info, attention_unserved=self.unproven)

    async def opened(self, restarts: Restarts | None = None) -> RestartingEngine:
        engine = RestartingEngine(
            await self.start(), self.prove, self.start, restarts or Restarts(QUICK)
        )
        await engine.prove()
        return engine

    def kill(self) -> None:
        self.made[-1].faults.dead = True


async def serves(engine: RestartingEngine) -> bool:
    try:
        await engine.check_health()
    except ActserveError:
        return False
    return True


async def again(engine: RestartingEngine) -> None:
    await eventually(lambda: serves(engine), within_s=20)


async def test_an_engine_found_dead_is_started_again_and_serves() -> None:
    shop = Workshop()
    engine = await shop.opened()
    before = await events(engine, run())
    shop.kill()
    assert not await serves(engine)
    await again(engine)
    assert await events(engine, run()) == before
    assert len(shop.made) == 2
    assert shop.made[0].closed
    await engine.close()


WAYS: dict[str, Callable[[RestartingEngine], Awaitable[Any]]] = {
    "run": lambda engine: events(engine, run()),
    "tokenize": lambda engine: engine.tokenize(TextPrompt("hello")),
    "spell": lambda engine: engine.spell(["hello"]),
    "token_rows": lambda engine: engine.token_rows(TokenMatrix.EMBEDDING, [1]),
    "logit_directions": lambda engine: engine.logit_directions([LogitTarget(1)], ()),
    "check_health": lambda engine: engine.check_health(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_calls_meanwhile_fail_with_a_pause_after_which_to_try_again(way: str) -> None:
    shop = Workshop()
    engine = await shop.opened()
    shop.may_start.clear()
    shop.kill()
    assert not await serves(engine)
    refused = await reason(WAYS[way](engine))
    assert refused.reason is Reason.ENGINE_DEAD
    assert refused.retry_after_s is not None
    assert SOONEST_RETRY_S <= refused.retry_after_s <= LATEST_RETRY_S
    shop.may_start.set()
    await again(engine)
    await WAYS[way](engine)
    await engine.close()


async def test_a_stream_cut_by_the_death_ends_with_a_pause_too_and_its_error_starts_the_next() -> (
    None
):
    shop = Workshop()
    engine = await shop.opened()
    got: list[RunEvent] = []

    async def read() -> None:
        async with aclosing(engine.run(run(tokens=50))) as stream:
            async for event in stream:
                got.append(event)
                shop.kill()

    cut = await reason(read())
    assert (cut.reason, cut.retry_after_s is not None) == (Reason.ENGINE_DEAD, True)
    assert not any(isinstance(event, Finished) for event in got)
    await again(engine)
    await engine.close()


async def test_whatever_fails_because_the_engine_dies_says_so() -> None:
    shop = Workshop()
    engine = await shop.opened()
    first = shop.made[0]
    first.faults.unexpected = "cannot schedule new futures after shutdown"

    async def call() -> None:
        async with aclosing(engine.run(run())) as stream:
            async for _ in stream:
                pass

    with pytest.raises(RuntimeError):
        await call()
    assert await serves(engine), "an error of a run alone is not a death"
    calling = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    shop.kill()
    assert not await serves(engine)
    assert (await reason(calling)).reason is Reason.ENGINE_DEAD
    await engine.close()


async def test_a_started_engine_serves_nobody_before_it_has_proven_itself() -> None:
    shop = Workshop()
    engine = await shop.opened()
    shop.may_prove.clear()
    shop.kill()
    assert not await serves(engine)
    await eventually(lambda: shop.proving == 2, within_s=20)
    second = shop.made[-1]
    assert (await reason(events(engine, run("mine")))).reason is Reason.ENGINE_DEAD
    assert not await serves(engine)
    assert second.counters.started == 0
    shop.may_prove.set()
    await again(engine)
    await events(engine, run("mine"))
    await engine.close()


async def test_an_engine_that_proves_less_than_before_serves_less() -> None:
    shop = Workshop()
    engine = await shop.opened()
    assert not engine.info.attention_unserved
    shop.unproven = "failed the self-test"
    shop.kill()
    assert not await serves(engine)
    await again(engine)
    assert engine.info.attention_unserved == "failed the self-test"
    await engine.close()


async def test_a_start_that_fails_is_tried_again_after_longer_and_longer_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop, pauses = Workshop(), []
    engine = await shop.opened()
    sleep, loop = asyncio.sleep, asyncio.get_running_loop()

    async def recorded(delay_s: float) -> None:
        # Servers of other tests have loops of their own.
        if asyncio.get_running_loop() is not loop:
            return await sleep(delay_s)
        pauses.append(delay_s)
        return await sleep(0)

    shop.fails = [RuntimeError("no memory")] * 3
    monkeypatch.setattr(restarting_module.asyncio, "sleep", recorded)
    shop.kill()
    assert not await serves(engine)
    assert engine._restarting is not None
    await engine._restarting
    monkeypatch.undo()
    assert await serves(engine)
    # Those of an engine without a token delay are zero, too.
    assert [pause for pause in pauses if pause] == [0.001, 0.002, 0.004]
    await engine.close()


def died_while_proving(shop: Workshop) -> None:
    def dead() -> FakeEngine:
        engine = FakeEngine()
        engine.faults.dead = True
        return engine

    shop.make = dead


def of_another_width(shop: Workshop) -> None:
    shop.make = lambda: FakeEngine(width=32)


def without_memory(shop: Workshop) -> None:
    shop.fails = [RuntimeError("no memory")] * QUICK.starts


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (without_memory, "no memory"),
        (died_while_proving, "the engine has stopped"),
        (of_another_width, "its model is not the same as before"),
    ],
)
async def test_an_engine_that_does_not_start_is_given_up_with_a_reason(
    breaks: Callable[[Workshop], None], why: str
) -> None:
    shop, restarts = Workshop(), Restarts(QUICK)
    engine = await shop.opened(restarts)
    breaks(shop)
    shop.kill()
    assert not await serves(engine)
    async with asyncio.timeout(20):
        await restarts.given_up.wait()
    assert restarts.why.startswith("the engine of fake died and does not start again: ")
    assert why in restarts.why
    assert shop.starting == 1 + QUICK.starts
    assert (await reason(events(engine, run()))).reason is Reason.ENGINE_DEAD
    await engine.close()
    assert all(each.closed for each in shop.made)


async def test_a_start_that_hangs_is_given_up() -> None:
    shop, restarts = Workshop(), Restarts(replace(QUICK, total_s=0.01))
    engine = await shop.opened(restarts)
    shop.may_start.clear()
    shop.kill()
    assert not await serves(engine)
    async with asyncio.timeout(20):
        await restarts.given_up.wait()
    assert "takes too long" in restarts.why
    await engine.close()


@pytest.mark.parametrize("held", ["may_start", "may_prove"])
async def test_closing_while_an_engine_is_being_started_leaves_none(held: str) -> None:
    shop = Workshop()
    engine = await shop.opened()
    getattr(shop, held).clear()
    shop.kill()
    assert not await serves(engine)
    await eventually(
        lambda: (shop.starting, shop.proving) >= (2, 1 + (held == "may_prove")), within_s=20
    )
    async with asyncio.timeout(20):
        await engine.close()
    getattr(shop, held).set()
    await asyncio.sleep(0.01)
    assert all(each.closed for each in shop.made)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_engines_of_one_server_start_one_at_a_time() -> None:
    shops, restarts = [Workshop(), Workshop()], Restarts(QUICK)
    engines = [await shop.opened(restarts) for shop in shops]
    for shop in shops:
        shop.may_start.clear()
        shop.kill()
    for engine in engines:
        assert not await serves(engine)
    await eventually(lambda: shops[0].starting == 2, within_s=20)
    await asyncio.sleep(0.02)
    assert shops[1].starting == 1
    for shop in shops:
        shop.may_start.set()
    for engine in engines:
        await again(engine)
        await engine.close()


async def test_each_revival_is_told_once() -> None:
    told: list[str] = []
    shop = Workshop()
    engine = await shop.opened(Restarts(QUICK, restarted=told.append))
    for count in range(3):
        shop.kill()
        assert not await serves(engine)
        await again(engine)
        assert told == ["fake"] * (count + 1)
    await engine.close()


async def test_nothing_holds_a_dead_engine() -> None:
    shop = Workshop()
    engine = await shop.opened()
    await events(engine, run())
    first = weakref.ref(shop.made[0])
    shop.kill()
    shop.made.clear()
    assert not await serves(engine)
    await again(engine)
    gc.collect()
    assert first() is None
    await engine.close()


async def test_without_a_way_to_start_another_a_dead_engine_stays_dead() -> None:
    fake = FakeEngine()
    engine = RestartingEngine(fake, Workshop().prove)
    fake.faults.dead = True
    for _ in range(2):
        assert (await reason(engine.check_health())).reason is Reason.ENGINE_DEAD
    await engine.close()
    assert fake.closed


@pytest.mark.parametrize("let_in", ["before", "after"])
async def test_a_call_checked_before_the_death_is_not_served_after_it(let_in: str) -> None:
    """It was checked against what the engine before had proven."""
    shop = Workshop()
    engine = await shop.opened()
    admitted = AdmittedEngine(engine, AdmissionLimits())
    checked = admitted.info
    call = admitted.enter("")
    shop.kill()
    assert not await serves(engine)
    await again(engine)
    if let_in == "after":
        call = admitted.enter("", checked=checked)

    async def late(run: Run) -> AsyncGenerator[RunEvent, None]:
        async with call.started(run) as stream:
            async for event in stream:
                yield event

    async def read() -> None:
        async with aclosing(late(run())) as stream:
            async for _ in stream:
                pass

    refused = await reason(read())
    assert refused.reason is Reason.ENGINE_DEAD
    assert "send the call again" in refused.message
    assert shop.made[-1].counters.started == 1, "the self-test alone"
    assert (admitted.running, admitted.reserved_bytes) == (0, 0)
    await events(admitted, run())
    await engine.close()


async def test_runs_in_flight_and_waiting_end_with_the_death_and_free_what_they_hold() -> None:
    shop = Workshop(make=lambda: FakeEngine(token_delay_s=0.001))
    engine = await shop.opened()
    admitted = AdmittedEngine(engine, AdmissionLimits(max_running=2))
    running = [
        asyncio.ensure_future(events(admitted, run(f"run {number}", tokens=500, rows=3)))
        for number in range(5)
    ]
    await eventually(lambda: (admitted.running, admitted.waiting) == (2, 3), within_s=20)
    shop.kill()
    for each in running:
        assert (await reason(each)).reason is Reason.ENGINE_DEAD
    assert (admitted.running, admitted.waiting, admitted.reserved_bytes) == (0, 0, 0)
    await again(engine)
    await engine.close()


async def test_how_long_rows_are_stays_what_the_first_engine_had() -> None:
    shop = Workshop()
    engine = await shop.opened()
    site, asked = Site(HookPoint.RESID_POST, 1), []

    async def measure(measured: Engine, info: ModelInfo) -> dict[Site, float]:
        asked.append((measured, info))
        return {site: 12.5}

    await engine.measure(measure)
    assert asked == [(shop.made[0], replace(engine.info, row_norms={}))]
    assert engine.info.row_norms == {site: 12.5}
    before = engine.info
    shop.kill()
    assert not await serves(engine)
    await again(engine)
    assert engine.info is not before
    assert engine.info.row_norms == {site: 12.5}
    assert len(asked) == 1
