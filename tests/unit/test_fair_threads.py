"""Callers share threads fairly: they take turns, and none has more than its share."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from actserve_server.engine.fair_threads import CALLER, FairThreads


class Gate:
    """Work that waits until it is let go, and is seen to begin."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._open = threading.Event()

    def work(self, name: str) -> str:
        self.begun.append(name)
        assert self._open.wait(30)
        return name

    def open(self) -> None:
        self._open.set()


@asynccontextmanager
async def gated(threads: int, share: int) -> AsyncIterator[tuple[FairThreads, Gate]]:
    shared, gate = FairThreads(threads, share, "test"), Gate()
    try:
        yield shared, gate
    finally:
        gate.open()
        shared.close()


def ask(shared: FairThreads, gate: Gate, caller: str, name: str) -> "asyncio.Task[str]":
    async def run() -> str:
        CALLER.set(caller)
        return await shared.run(gate.work, name)

    return asyncio.create_task(run())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def settled(gate: Gate, count: int) -> list[str]:
    """What has begun, once nothing more does."""
    await until(lambda: len(gate.begun) >= count)
    await asyncio.sleep(0.05)
    return gate.begun


async def test_a_caller_has_no_more_than_its_share_of_the_threads() -> None:
    async with gated(threads=4, share=2) as (shared, gate):
        much = [ask(shared, gate, "much", f"much {index}") for index in range(10)]
        assert await settled(gate, 2) == ["much 0", "much 1"]
        little = ask(shared, gate, "little", "little")
        assert (await settled(gate, 3))[2] == "little"
        gate.open()
        assert await little == "little"
        assert await asyncio.gather(*much) == [f"much {index}" for index in range(10)]


async def test_callers_take_turns() -> None:
    async with gated(threads=1, share=1) as (shared, gate):
        asked = [ask(shared, gate, "first", "first")]
        await settled(gate, 1)
        asked += [ask(shared, gate, "much", f"much {index}") for index in range(3)]
        await asyncio.sleep(0)
        asked += [ask(shared, gate, "little", "little")]
        await asyncio.sleep(0.05)
        gate.open()
        await asyncio.gather(*asked)
    assert gate.begun == ["first", "much 0", "little", "much 1", "much 2"]


async def test_whoever_gives_up_waiting_loses_its_turn_to_the_next() -> None:
    async with gated(threads=1, share=1) as (shared, gate):
        first = ask(shared, gate, "a", "first")
        await settled(gate, 1)
        gone, stays = ask(shared, gate, "a", "gone"), ask(shared, gate, "b", "stays")
        await asyncio.sleep(0.05)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        gate.open()
        assert await asyncio.gather(first, stays) == ["first", "stays"]
    assert gate.begun == ["first", "stays"]


async def test_a_thread_is_taken_until_its_work_ends_though_nobody_waits_for_it() -> None:
    async with gated(threads=1, share=1) as (shared, gate):
        first = ask(shared, gate, "a", "first")
        await settled(gate, 1)
        first.cancel()
        second = ask(shared, gate, "b", "second")
        await asyncio.sleep(0.05)
        assert gate.begun == ["first"]
        gate.open()
        assert await second == "second"


async def test_a_turn_that_is_given_up_as_it_comes_goes_to_the_next() -> None:
    async with gated(threads=1, share=1) as (shared, gate):
        gate.open()
        for _ in range(200):
            gone = ask(shared, gate, "a", "gone")
            await asyncio.sleep(0)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
        assert await asyncio.wait_for(ask(shared, gate, "b", "last"), 10) == "last"


async def test_what_is_raised_is_raised_and_frees_the_thread() -> None:
    shared = FairThreads(1, 1, "test")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await shared.run(divmod, 1, 0)
    assert await shared.run(divmod, 7, 2) == (3, 1)
    shared.close()


async def test_the_work_is_done_on_behalf_of_the_caller() -> None:
    shared = FairThreads(1, 1, "test")
    CALLER.set("somebody")
    assert await shared.run(CALLER.get) == "somebody"
    shared.close()


async def test_who_asks_of_closed_threads_is_refused_every_time() -> None:
    shared = FairThreads(1, 1, "test")
    shared.close()
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(shared.run(divmod, 7, 2), 10)


async def test_a_loop_that_was_closed_with_somebody_waiting_takes_no_thread() -> None:
    async with gated(threads=1, share=1) as (shared, gate):
        first = ask(shared, gate, "a", "first")
        await settled(gate, 1)

        def wait_in_a_loop_of_its_own() -> None:
            loop = asyncio.new_event_loop()
            waiting = loop.create_task(shared.run(divmod, 7, 2))
            loop.run_until_complete(asyncio.sleep(0.05))
            loop.close()
            waiting.get_coro().close()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

        await asyncio.to_thread(wait_in_a_loop_of_its_own)
        gate.open()
        await first
        assert await asyncio.wait_for(shared.run(divmod, 7, 2), 10) == (3, 1)
