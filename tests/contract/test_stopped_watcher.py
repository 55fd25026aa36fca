"""A watcher that is stopped while alerts go on: others get theirs as they are raised, and once it
reads again it gets every one, once.

`make durability` stops one for a minute at 1,000 alerts a second; `STOPPED_S` says for how long.
The suite has the same without a clock, in test_alerts.py.
"""

import asyncio
import os

import grpc
import pytest

from actserve_server.engine.fake import FakeEngine
from tests.contract.alerts import Reader, raise_at_once, watching
from tests.contract.harness import Served, serving, unpack

STOPPED_S = int(os.environ.get("STOPPED_S", "0"))
A_SECOND = 1000
AT_ONCE = 100
"""Raised together, as by as many calls."""


async def raised(served: Served, other: Reader) -> float:
    """Raises alerts for so many seconds, or longer on a machine that is too busy for it; `other`
    has read those of each second before the next begins. Returns how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for second in range(STOPPED_S):
        reading = asyncio.create_task(other.scores(A_SECOND))
        for first in range(second * A_SECOND, (second + 1) * A_SECOND, AT_ONCE):
            await raise_at_once(served, range(first, first + AT_ONCE))
            part = (first + AT_ONCE) / A_SECOND
            await asyncio.sleep(max(0.0, began + part - loop.time()))
        assert sorted(await reading) == list(range(second * A_SECOND, (second + 1) * A_SECOND))
    return loop.time() - began


async def read_on(served: Served, stopped: Reader, count: int) -> list[float]:
    """The scores of the next alerts, by another stream where the server has ended one that nobody
    read for so long."""
    found: list[float] = []
    try:
        while len(found) < count:
            found += await stopped.scores(1)
    except grpc.aio.AioRpcError as error:
        if unpack(error).reason != "READER_STALLED":
            raise
    async with watching(served, resume_token=stopped.token) as resumed:
        return found + await resumed.scores(count - len(found))


@pytest.mark.slow
@pytest.mark.skipif(not STOPPED_S, reason="takes its time; see `make durability`")
@pytest.mark.timeout(120 + 4 * STOPPED_S)
async def test_a_watcher_that_stops_at_a_thousand_alerts_a_second_holds_up_nobody_and_misses_none(
    store: dict[str, str],
) -> None:
    async with (
        serving(FakeEngine(), **store) as served,
        watching(served) as stopped,
        watching(served) as other,
    ):
        count, took_s = STOPPED_S * A_SECOND, await raised(served, other)
        print(f"{count / took_s:.0f} alerts a second for {took_s:.0f} s")  # noqa: T201
        found = await read_on(served, stopped, count)
        assert sorted(found) == list(range(count))
