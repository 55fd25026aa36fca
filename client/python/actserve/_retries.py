"""Retries: when a call that found no server is made again. gRPC's own are off: they know nothing of
`RetryInfo`, and end where a server sends headers early.

Every client of actserve does the same; tests/conformance has the cases.
"""

import logging
import random
import time

from actserve._show.token_text import harmless
from actserve.errors import ActserveError, DeadlineExceeded, Unavailable

LOGGER = logging.getLogger("actserve")
"""Where a call that is to last says that its server is gone, and that it is back."""

_LONGEST_PAUSES_S = (0.25, 0.75, 2.25)
"""Before each further attempt, so there are four: enough for a server that restarts or is briefly
full, soon enough for a person who mistyped the address. Pauses are random from zero on (full
jitter), so that callers who were refused together do not come back together."""

_MAX_TOLD_S = 30.0
"""For as long as this a server may tell a call to wait before it is made again."""

_FIRST_RECONNECT_S = 0.25
_SLOWEST_RECONNECT_S = 15.0
"""Pauses of a call that is to last double up to here: late enough to be no load for a server that
is gone, soon enough for an alert."""

_HELD_S = 10.0
"""A connection that has held for as long as this was a good one."""


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


class Reconnects(Retries):
    """The attempts at a call that is to last, such as a watch. Once there was a connection, a
    server that is gone is looked for until `timeout` seconds are over, or until it was gone for
    `give_up_after` seconds; with neither for as long as it takes. Pauses are random from zero on,
    or what the server says, half a minute at most. Says on `LOGGER` that the server is gone, if
    the first attempt has not found it again, and that it is back."""

    def __init__(self, timeout: float | None, give_up_after: float | None) -> None:
        super().__init__(timeout)
        self._give_up_after = give_up_after
        self._connected: float | None = None
        """Since when there is a connection, or was the last one; None before the first."""
        self._gone: float | None = None
        """Since when there is none."""
        self._failures = 0
        """Attempts since a connection was a good one."""
        self._told = False
        """Whether it was said that the server is gone."""

    def connected(self) -> None:
        """A connection has begun."""
        self._connected = time.monotonic()
        if self._told and self._gone is not None:
            LOGGER.warning(
                "connected again after %.3g seconds; the watch goes on where it was",
                self._connected - self._gone,
            )
        self._gone, self._told = None, False

    def good(self) -> None:
        """Something has come by the connection."""
        self._failures = 0

    def pause(self, error: ActserveError) -> float | None:
        """As of `Retries`."""
        if self._connected is None:
            return super().pause(error)
        # A server, or what is between, may have a limit of its own for a call.
        limited = isinstance(error, DeadlineExceeded) and self.left() is None
        if not isinstance(error, Unavailable) and not limited:
            return None
        now, left = time.monotonic(), self.left()
        looked_for = self._gone is not None
        if self._gone is None:
            self._gone = now
            if now - self._connected > _HELD_S:
                self._failures = 0
        longest = min(_FIRST_RECONNECT_S * 2 ** min(self._failures, 16), _SLOWEST_RECONNECT_S)
        told = min(max(error.retry_after or 0.0, 0.0), _MAX_TOLD_S)
        pause = told + random.uniform(0.0, longest)
        self._failures += 1
        ends = min(
            float("inf") if left is None else now + left,
            float("inf") if self._give_up_after is None else self._gone + self._give_up_after,
        )
        if now + pause >= ends:
            return None
        if looked_for and not self._told:
            why = harmless(str(error)).replace("\n", " ")
            LOGGER.warning("the watch has no server, and looks for it: %s", why)
            self._told = True
        return pause
