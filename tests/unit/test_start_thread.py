"""A start runs in a thread that nobody has to wait for."""

import asyncio
import threading

import pytest

from actserve_server.engine.start_thread import in_thread, is_starting
from tests.contract.harness import eventually


async def test_what_a_start_returns_is_handed_over() -> None:
    assert await in_thread(lambda: 7) == 7


async def test_what_a_start_raises_is_handed_over() -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        await in_thread(fail)


async def test_it_is_known_whether_a_start_still_runs_that_nobody_waits_for() -> None:
    may_end = threading.Event()
    starting = in_thread(lambda: may_end.wait(10))
    assert is_starting()
    starting.cancel()
    await asyncio.sleep(0)
    assert is_starting()
    may_end.set()
    await eventually(lambda: not is_starting())
