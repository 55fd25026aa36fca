"""Reads that calls share: what is asked for while one runs is read at once when it has ended.

A read costs its thread and its statements, however little it reads, so many calls at once would
mostly wait for each other. No call gets what was read before it asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from actserve_server.engine.fair_threads import CALLER

T = TypeVar("T")

MAX_KEYS = 1024
"""Of one read."""

_Who = tuple[str, str]
"""A tenant, and for whom the event loop works, who takes turns with others."""


@dataclass(slots=True, eq=False)
class _Next(Generic[T]):
    """A read that has not begun."""

    keys: set[str]
    done: "asyncio.Future[Mapping[str, T]]"


class SharedReads(Generic[T]):
    """Reads things of a tenant by key. To be used on one event loop."""

    def __init__(self, read: Callable[[str, Collection[str]], Awaitable[Mapping[str, T]]]) -> None:
        """`read` finds things of a tenant; it may leave some out."""
        self._read = read
        self._next: dict[_Who, _Next[T]] = {}
        self._running: dict[_Who, asyncio.Task[None]] = {}

    async def get(self, tenant: str, keys: Collection[str]) -> Mapping[str, T]:
        """What was found of these keys, and perhaps of others. Nothing, where the read failed or
        would have been too large: then the caller reads by itself, and learns why."""
        who = (tenant, CALLER.get())
        batch = self._next.get(who)
        if len(keys) + (len(batch.keys) if batch else 0) > MAX_KEYS:
            return {}
        if batch is None:
            batch = self._next[who] = _Next(set(), asyncio.get_running_loop().create_future())
            if who not in self._running:
                self._running[who] = asyncio.create_task(self._run(who))
        batch.keys.update(keys)
        # Others wait for it, too.
        return await asyncio.shield(batch.done)

    async def _run(self, who: _Who) -> None:
        """Reads until nobody waits."""
        try:
            while batch := self._next.pop(who, None):
                found: Mapping[str, T] = {}
                try:
                    with suppress(Exception):  # Each caller reads again, and is told.
                        found = await self._read(who[0], batch.keys)
                finally:
                    batch.done.set_result(found)
        finally:
            del self._running[who]
