"""Flight: calls that are running, so that they can be stopped together."""

import threading
from typing import Any


class Flight:
    """Running calls; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        self.cancelled = False

    def add(self, rpc: Any) -> None:
        with self._lock:
            self._running.add(rpc)
            cancelled = self.cancelled
        if cancelled:  # Its thread was on the way here when the others were cancelled.
            rpc.cancel()

    def remove(self, rpc: Any) -> None:
        with self._lock:
            self._running.discard(rpc)

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            running = list(self._running)
        for rpc in running:
            rpc.cancel()
