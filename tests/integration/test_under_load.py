"""A hundred calls to all services, by many streams at once: each is answered as if it were alone,
or refused as it says. `make load` does the same for long, and looks at memory and at times."""

import asyncio

from actserve import AsyncClient
from tests.integration.conftest import Served
from tests.load.mixed_calls import KINDS, MONITORS, Outcome, compare, make_monitors, stream

STREAMS = 40
ANSWERS = 100
COMPARED = 25


async def test_calls_of_many_streams_are_answered_as_if_each_were_alone(served: Served) -> None:
    outcome = Outcome()
    async with AsyncClient(f"127.0.0.1:{served.port}", timeout=None) as client:
        await make_monitors(client)
        try:
            await asyncio.gather(
                *(
                    stream(client, number, lambda: outcome.answered < ANSWERS, outcome)
                    for number in range(STREAMS)
                )
            )
            assert not outcome.wrong
            assert set(outcome.given) >= {ask.__name__ for ask in KINDS}
            await compare(outcome.sampled[:COMPARED])
        finally:
            for name in MONITORS:
                await client.monitors.delete(name)
