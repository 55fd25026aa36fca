"""Captures beside them make plain generations hardly slower.

Half of the streams generate, and are timed. The other half do the same in one kind of round; in the
other they capture rows of it too. So the engine has the same tokens to compute in both, and what
differs is what captures cost. Rounds of both kinds take turns, so that whatever else the machine
does falls on both.
"""

import asyncio
import random
import time

import numpy as np

from actserve import AsyncClient
from tests.load.loaded_server import SECONDS, TENANTS, Server

STREAMS = 64
ROUNDS = 10
"""Of each kind."""
ROUND_S = SECONDS / 40
MAX_RATIO = 1.25
TELLS_TAILS = 1000
"""Generations of a kind, of which a hundredth is slower than the 99th percentile."""
TOKENS = 16
"""That each generates."""
SITES = ["resid_post.9", "resid_post.20"]
WORDS = ("river", "stone", "music", "engine", "letter", "winter", "harbour", "garden", "window")


def _prompt(rng: random.Random) -> str:
    """One that was not run before: nothing of it is cached."""
    return " ".join(rng.choices(WORDS, k=rng.randrange(8, 64)))


async def _stream(
    client: AsyncClient, rng: random.Random, until: float, sites: list[str], took: list[float]
) -> None:
    """Generates without end; the seconds of each are put into `took`."""
    while time.monotonic() < until:
        began = time.monotonic()
        await client.generate(_prompt(rng), sites, temperature=0.0, max_tokens=TOKENS)
        took.append(time.monotonic() - began)


async def _round(
    plain: AsyncClient, other: AsyncClient, rng: random.Random, sites: list[str]
) -> tuple[list[float], int]:
    """Seconds of what is plain, and how many the others made."""
    until = time.monotonic() + ROUND_S
    took, others = list[float](), list[float]()
    await asyncio.gather(
        *(_stream(plain, rng, until, [], took) for _ in range(STREAMS // 2)),
        *(_stream(other, rng, until, sites, others) for _ in range(STREAMS // 2)),
    )
    return took, len(others)


async def test_captures_of_others_make_no_generation_slow(server: Server) -> None:
    rng = random.Random(0)
    alone, beside, captured = list[float](), list[float](), 0
    async with server.client(TENANTS[0]) as plain, server.client(TENANTS[1]) as other:
        await _round(plain, other, rng, SITES)
        for _ in range(ROUNDS):
            took, _ = await _round(plain, other, rng, [])
            alone += took
            took, others = await _round(plain, other, rng, SITES)
            beside += took
            captured += others
    print(f"{len(alone)} generations beside plain ones, {len(beside)} beside {captured} captures")
    for share in (50, 90, 99):
        first, second = np.percentile(alone, share), np.percentile(beside, share)
        print(f"p{share}: {first:.2f} s, {second:.2f} s beside captures, x {second / first:.3f}")
    assert captured >= STREAMS
    ratio = np.percentile(beside, 99) / np.percentile(alone, 99)
    assert min(len(alone), len(beside)) < TELLS_TAILS or ratio <= MAX_RATIO
