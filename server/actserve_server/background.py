"""What the server does beside its calls, for as long as it lives."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from actserve_server.domain.errors import ActserveError

EXPIRE_S = 60.0
"""How late what is stored for a time may be deleted once that is over."""

log = structlog.get_logger("actserve.background")


@contextmanager
def going_on() -> Iterator[None]:
    """What is done again and again, is tried again after an error."""
    try:
        yield
    except ActserveError:
        pass  # The database has said that it cannot be reached.
    except Exception:
        log.exception("a task of the server failed, and is tried again")


async def repeat(pause_s: float, work: Callable[[], Awaitable[object]]) -> None:
    """Does it for ever, after a pause each time, whatever comes of it."""
    while True:
        await asyncio.sleep(pause_s)
        with going_on():
            await work()


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancels tasks, and returns when they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
