"""Work that would hold up the event loop, done in threads that callers share fairly.

What callers send can take seconds to look at: a long prompt to tokenize, a large matrix to
decompose. Callers take turns, and none has more than its share of the threads, so that whoever
sends much waits for itself.
"""

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

CALLER: ContextVar[str] = ContextVar("actserve_caller", default="")
"""For whom work is done: the tenant of the call, or on a server without tokens the connection that
it came by. A context variable, so that an engine's tokenizer knows it without each function on the
way handing it on."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Somebody who waits for a thread."""

    loop: asyncio.AbstractEventLoop
    turn: "asyncio.Future[None]"


class FairThreads:
    """May be used from several event loops."""

    def __init__(self, threads: int, share: int, name: str) -> None:
        """A caller has at most `share` of the threads at once."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._share = share
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Waiting]] = {}
        """By caller, whose turn is next first."""

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. If this is cancelled meanwhile, the function runs on
        and its thread is taken until it ends."""
        caller = CALLER.get()
        await self._enter(caller)
        context = copy_context()
        try:
            done = self._pool.submit(lambda: context.run(function, *args, **kwargs))
        except RuntimeError:  # It was closed meanwhile.
            self._leave(caller)
            raise
        done.add_done_callback(lambda _: self._leave(caller))
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Waits for nothing; who still asks, or waits, is refused with RuntimeError."""
        self._pool.shutdown(wait=False)

    async def _enter(self, caller: str) -> None:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop, loop.create_future())
        with self._lock:
            self._waiting.setdefault(caller, deque()).append(waiting)
            self._wake()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            self._give_up(caller, waiting)
            raise

    def _give_up(self, caller: str, waiting: _Waiting) -> None:
        with self._lock:
            queue = self._waiting.get(caller, deque())
            if waiting in queue:
                queue.remove(waiting)
                if not queue:
                    del self._waiting[caller]
                return
        self._leave(caller)  # Its turn had come.

    def _leave(self, caller: str) -> None:
        with self._lock:
            self._free += 1
            self._used[caller] -= 1
            if not self._used[caller]:
                del self._used[caller]
            self._wake()

    def _wake(self) -> None:
        """Gives free threads to those who wait, one of each caller in turn. With the lock."""
        while self._free:
            caller = next((each for each in self._waiting if self._used[each] < self._share), None)
            if caller is None:
                return
            queue = self._waiting.pop(caller)
            next_one = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # Behind the others.
            try:
                next_one.loop.call_soon_threadsafe(_come, next_one.turn)
            except RuntimeError:  # Its loop was closed, so nobody waits there.
                continue
            self._free -= 1
            self._used[caller] += 1


def _come(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)


_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""As many as in asyncio's default pool. numpy lets other threads run while it computes."""

_SHARED = FairThreads(_THREADS, max(1, _THREADS // 2), "actserve-work")


async def off_loop(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns or raises, called in one of the threads that all callers share."""
    return await _SHARED.run(function, *args, **kwargs)
