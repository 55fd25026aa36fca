"""A server under load refuses what it must, answers the rest exactly, and does not grow.

`make load` runs it at length: 500 streams for ten minutes. `LOAD_STREAMS` and `LOAD_SECONDS` make
it shorter; what is said of memory needs the whole time, and is not asked of less than five minutes.

Nothing depends on how fast the machine is. No call has a deadline: one that waits too long is found
by how many others were answered meanwhile.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import cycle
from statistics import median

import pytest

from actserve import AsyncClient
from tests.load.loaded_server import SECONDS, TENANTS, Server
from tests.load.mixed_calls import KINDS, Outcome, compare, make_monitors, stream

STREAMS = int(os.environ.get("LOAD_STREAMS", "500"))
WARM_UP = 0.3
"""Of the time, in which caches and pools fill up."""
MAX_GROWTH = 0.02
"""Of the memory after warming up."""
TELLS_GROWTH_S = 300
"""So long it has to be watched for that."""


@pytest.fixture
async def clients(server: Server) -> AsyncIterator[list[AsyncClient]]:
    """Of each tenant one."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client(each)) for each in TENANTS]
        for client in clients:
            await make_monitors(client)
        yield clients


async def _watch(
    server: Server, until: float, outcome: Outcome, seen: list[tuple[float, float, float]]
) -> None:
    """Until it is cancelled. Seconds and mebibytes of the server and the engine are `seen`, as long
    as callers ask."""
    started = time.monotonic()
    while True:
        outcome.overtaken(STREAMS)
        if time.monotonic() < until:
            seen.append((time.monotonic() - started, *server.mebibytes()))
        await asyncio.sleep(2.0)


async def test_a_loaded_server_refuses_or_answers_exactly_and_does_not_grow(
    server: Server, clients: list[AsyncClient]
) -> None:
    for client in clients:
        await client.fetch("warm", "resid_post.0")
    outcome, began = Outcome(), time.monotonic()
    until, memory = began + SECONDS, list[tuple[float, float, float]]()
    watching = asyncio.create_task(_watch(server, until, outcome, memory))
    callers = zip(range(STREAMS), cycle(clients), strict=False)
    await asyncio.gather(
        *(
            stream(client, number, lambda: time.monotonic() < until, outcome)
            for number, client in callers
        )
    )
    watching.cancel()
    took = time.monotonic() - began
    print(f"given {dict(outcome.given)}, refused {dict(outcome.refused)}")
    print(f"{outcome.answered / took:.1f} answers a second for {took:.0f} s")
    print(f"the longest waited for {outcome.most_overtaken / STREAMS:.1f} answers to each stream")
    assert not outcome.wrong
    assert outcome.given.total() >= STREAMS
    assert set(outcome.given) >= {ask.__name__ for ask in KINDS}

    for at, mine, its in memory[:: max(1, len(memory) // 20)]:
        print(f"{at:.0f} s: server {mine:.0f} MiB, engine {its:.0f} MiB")
    warm = [mine + its for at, mine, its in memory if at > WARM_UP * SECONDS]
    third = max(1, len(warm) // 3)
    first, last = median(warm[:third]), median(warm[-third:])
    print(f"{first:.0f} MiB after warming up, {last:.0f} MiB at the end, {last / first - 1:+.2%}")
    print(f"{len(outcome.sampled)} answers compared with those given alone")
    assert outcome.sampled
    await compare(outcome.sampled)
    assert SECONDS < TELLS_GROWTH_S or last <= (1 + MAX_GROWTH) * first
