"""Which monitors have series of their own among the metrics, of more than there is room for.

Accounts share the room. A monitor that comes when it is taken gets the place of one that was not
used for long, or else of the account that has most of them, if that has two more than its own has:
so what somebody else makes cannot keep it out, and where room is shared evenly nothing changes
hands. What has no place is counted together.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable

IDLE_S = 3600.0
"""A monitor that was not used for so long gives up its place to any other."""


class FairSeries:
    """Names that have a place. `ended` is told of one that has lost it; `clock` tells seconds."""

    def __init__(
        self,
        room: int,
        ended: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._ended = ended
        self._clock = clock
        self._used: dict[str, tuple[str, float]] = {}
        """Of each name its account and when it was last used, the least recently used first."""
        self._counts: Counter[str] = Counter()
        """Of each account, its places."""
        self._lock = threading.Lock()

    def has(self, name: str, account: str) -> bool:
        """Whether a monitor that is used now has a place."""
        with self._lock:
            now = self._clock()
            if name in self._used:
                # The first one that had the name, if several accounts have.
                account, _ = self._used.pop(name)
            elif len(self._used) < self._room or self._free_one(account, now):
                self._counts[account] += 1
            else:
                return False
            self._used[name] = account, now
            return True

    def _free_one(self, account: str, now: float) -> bool:
        """Takes a place from whoever has to give it up, if anybody has."""
        name, (whose, used) = next(iter(self._used.items()))
        if now - used < IDLE_S:
            (whose, most), *_ = self._counts.most_common(1)
            if most < self._counts[account] + 2:
                return False
            name = next(each for each, (of, _) in self._used.items() if of == whose)
        del self._used[name]
        self._counts[whose] -= 1
        if not self._counts[whose]:
            del self._counts[whose]
        self._ended(name)
        return True
