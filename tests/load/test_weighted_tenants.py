"""Two tenants that both want all of the engine get it by their weights, in tokens."""

import asyncio
import random

from actserve import AsyncClient
from tests.load.loaded_server import HEAVY, LIGHT, MAX_RUNNING, SECONDS, WEIGHT, Server

STREAMS = 2 * MAX_RUNNING
"""Of each: more than may run at once, so that both always have some that wait."""
WARM_UP = 10_000
"""Tokens until what runs has come in by turns."""
COUNTED = round(100 * SECONDS)
"""Tokens of both."""
WITHIN = 0.1
TELLS_SHARES = 20_000
"""So many have to be counted for that, of which those that ran at the beginning and at the end are
a small part."""
WORDS = ("river", "stone", "music", "engine", "letter", "winter", "harbour", "garden", "window")


class Counted:
    """Tokens of the generations that a tenant has had, and how many wait."""

    def __init__(self) -> None:
        self.tokens = 0
        self.asked = 0


async def _stream(client: AsyncClient, number: int, counted: Counted) -> None:
    rng = random.Random(number)
    while True:
        # Of different sizes, so that turns by calls would not give shares by tokens.
        prompt = " ".join(rng.choices(WORDS, k=rng.choice((4, 16, 64))))
        counted.asked += 1
        made = await client.generate(prompt, temperature=0.0, max_tokens=rng.choice((4, 8, 16)))
        counted.asked -= 1
        counted.tokens += len(made.prompt_token_ids) + len(made.token_ids)


async def _until(
    tokens: int, light: Counted, heavy: Counted, streams: list[asyncio.Task[None]]
) -> None:
    """Both have had so many together."""
    while light.tokens + heavy.tokens < tokens:
        await asyncio.sleep(0.1)
        if failed := next((each for each in streams if each.done()), None):
            failed.result()
        assert light.asked == heavy.asked == STREAMS


async def test_tenants_get_the_engine_by_their_weights(server: Server) -> None:
    light, heavy = Counted(), Counted()
    async with server.client(LIGHT) as first, server.client(HEAVY) as second:
        streams = [
            asyncio.create_task(_stream(client, number, counted))
            for client, counted in ((first, light), (second, heavy))
            for number in range(STREAMS)
        ]
        await _until(WARM_UP, light, heavy, streams)
        before = light.tokens, heavy.tokens
        await _until(sum(before) + COUNTED, light, heavy, streams)
        got = light.tokens - before[0], heavy.tokens - before[1]
        for each in streams:
            each.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    print(f"{got[0]} tokens of weight 1, {got[1]} of weight {WEIGHT:g}: 1 : {got[1] / got[0]:.2f}")
    assert COUNTED < TELLS_SHARES or abs(got[1] / got[0] - WEIGHT) <= WITHIN * WEIGHT
