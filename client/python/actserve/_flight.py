"""Flight: calls that are running, so that they can be stopped together."""

import threading
from typing import Any


class Flight:
    """Running calls; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self._cancelled = threading.Event()

    def add(self, rpc: Any) -> None:
        with self._lock:
            self._running.add(rpc)
        if self._cancelled.is_set():  # Its thread was on the way here when the others were.
            rpc.cancel()

    def remove(self, rpc: Any) -> None:
        with self._lock:
            self._running.discard(rpc)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
            running = list(self._running)
        for rpc in running:
            rpc.cancel()

    def cancelled(self, *, within: float = 0.0) -> bool:
        """Whether the calls were stopped; waits up to this many seconds for it."""
        return self._cancelled.wait(within)
