"""Bounds the float32 copies of kept rows that calls work with.

A short request names what is much larger, so what is copied for it is counted: from before it is
made until nobody has it any more, over all calls and for each caller.
"""

import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import CALLER

RETRY_AFTER_S = 1.0


class KeptCopies:
    """At most `max_bytes`, of which one caller has at most its share. Threads may use it at the
    same time."""

    def __init__(self, max_bytes: int, share: float = 1.0) -> None:
        self._max_bytes = max_bytes
        self.max_own_bytes = int(max_bytes * share)
        """Of one caller."""
        self._held: Counter[str] = Counter()
        self._gone: deque[tuple[str, int]] = deque()
        """Copies that nobody has any more, and that `_held` still counts: they may go at any time,
        in the middle of counting too."""
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        with self._lock:
            self._forget_gone()
            return self._held.total()

    def make(self, copy_bytes: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` returns, a copy of so many bytes, for the caller of this context. Raises
        QUEUE_FULL, and makes nothing, if there is no room."""
        caller = CALLER.get()
        self._take(caller, copy_bytes)
        try:
            copy = made = make()
        except BaseException:
            self._gone.append((caller, copy_bytes))
            raise
        while isinstance(copy.base, np.ndarray):
            copy = copy.base  # Of views it is what they view that stays.
        weakref.finalize(copy, self._gone.append, (caller, copy_bytes)).atexit = False
        return made

    def _take(self, caller: str, wanted: int) -> None:
        with self._lock:
            self._forget_gone()
            own, limit = self._held[caller], self.max_own_bytes
            room = min(limit - own, self._max_bytes - self._held.total())
            if wanted > room:
                raise ActserveError(
                    Reason.QUEUE_FULL,
                    f"the kept rows take {wanted} bytes as float32, but those in use leave {room}, "
                    f"and one caller may use at most {limit}; try again in {RETRY_AFTER_S:g} s",
                    metadata={"limit": limit},
                    retry_after_s=RETRY_AFTER_S,
                )
            self._held[caller] += wanted

    def _forget_gone(self) -> None:
        while self._gone:
            caller, size = self._gone.popleft()
            self._held[caller] -= size
            if not self._held[caller]:
                del self._held[caller]
