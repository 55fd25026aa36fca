"""Lets calls to an NLA in.

A call that is let in runs to its end, through AV and AR, so neither engine may refuse a part of it
later; the gate before both does all the refusing.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.admission import RETRY_AFTER_S


class Gate:
    """Counts calls, and refuses new ones when there are too many or the server drains."""

    def __init__(self, max_calls: int = 1024) -> None:
        self._max_calls = max_calls
        self._calls = 0
        self._refusal: Callable[[], ActserveError] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def calls(self) -> int:
        """Calls in progress."""
        return self._calls

    def _check(self) -> None:
        if self._refusal is not None:
            raise self._refusal()
        if self._calls >= self._max_calls:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{self._calls} calls are being explained, the most this server lets in; try again "
                f"in {RETRY_AFTER_S:g} s",
                metadata={"running": self._calls},
                retry_after_s=RETRY_AFTER_S,
            )

    @asynccontextmanager
    async def call(self) -> AsyncGenerator[None, None]:
        """A call in progress. Raises DRAINING, what `refuse` was given, or QUEUE_FULL if
        none may begin now."""
        self._check()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def drain(self) -> None:
        """Lets none in from now on, since the server ends."""
        self.refuse(_draining)

    def refuse(self, refusal: Callable[[], ActserveError]) -> None:
        """Lets none in from now on, for a reason that is made for each."""
        self._refusal = refusal

    async def wait_idle(self) -> None:
        """Returns once no call is left."""
        await self._idle.wait()


def _draining() -> ActserveError:
    return ActserveError(
        Reason.DRAINING,
        "this server is shutting down; try again to reach another",
        retry_after_s=RETRY_AFTER_S,
    )
