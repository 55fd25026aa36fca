"""Retries: when a call that found no server is made again. gRPC's own are off: they know nothing of
`RetryInfo`, and end where a server sends headers early.

Every client of actserve does the same; tests/conformance has the cases.
"""

import random
import time

from actserve.errors import ActserveError, Unavailable

_LONGEST_PAUSES_S = (0.25, 0.75, 2.25)
"""Before each further attempt, so there are four: enough for a server that restarts or is briefly
full, soon enough for a person who mistyped the address. Pauses are random from zero on (full
jitter), so that callers who were refused together do not come back together."""

_MAX_TOLD_S = 30.0
"""For as long as this a server may tell a call to wait before it is made again."""


class Retries:
    """The attempts at one call, all within its timeout in seconds."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else time.monotonic() + timeout
        self._pauses = iter(_LONGEST_PAUSES_S)

    def left(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def pause(self, error: ActserveError) -> float | None:
        """Seconds to wait before the next attempt, now that the last one ended with this error;
        None if there is no next one, and the error is to be raised."""
        if not isinstance(error, Unavailable):
            return None
        told, left = max(error.retry_after or 0.0, 0.0), self.left()
        longest = next(self._pauses, None)
        if longest is None or told > _MAX_TOLD_S:
            return None
        pause = told + random.uniform(0.0, longest)
        return pause if left is None or pause < left else None
