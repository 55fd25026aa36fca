"""The elements of vectors that were used last, by their hash, so that they are not read again.

Only contents are remembered, never what a name means: that is asked of the database each time, so a
vector that another replica has deleted is not found here either.
"""

import threading
from collections import OrderedDict


class VectorContents:
    """At most `max_bytes`. Threads may use it at the same time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        """By SHA-256, what was used last at the end."""
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def get(self, sha256: bytes) -> bytes | None:
        with self._lock:
            if sha256 in self._held:
                self._held.move_to_end(sha256)
            return self._held.get(sha256)

    def put(self, sha256: bytes, elements: bytes) -> None:
        """Remembers what fits, in place of what was not used for longest."""
        with self._lock:
            if sha256 in self._held or len(elements) > self._max_bytes:
                return
            self._held[sha256] = elements
            self._held_bytes += len(elements)
            while self._held_bytes > self._max_bytes:
                self._held_bytes -= len(self._held.popitem(last=False)[1])
