"""How a server ends its engines: all at once, and soon enough for what waits for the server."""

import asyncio
import gc
from typing import Protocol

CLOSE_S = 20.0
"""How long the processes of an engine may take to end. After that they are killed, which leaves
their shared memory behind. Whoever stops a server must give it so long, and a few seconds more,
after the grace of its calls."""


class Closes(Protocol):
    async def close(self) -> None: ...


async def close_all(*every: Closes) -> None:
    """Closes all at once, since each may take its time. Raises the first error once all have
    ended."""
    outcomes = await asyncio.gather(*(each.close() for each in every), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def collect_dead() -> None:
    """Frees what an engine that was closed still holds: sockets, threads and memory, until it is
    collected. An engine that has started keeps what there is from being looked through."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
