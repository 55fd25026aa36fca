"""Versions: a word to callers whose server is older than their client."""

import re
import threading
import warnings
from collections.abc import Iterable
from typing import Any

_TRAILER = "x-actserve-version"
_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.")


class ServerVersion:
    """What the server of one client tells of itself."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._lock = threading.Lock()
        self._warned = False

    def check(self, trailers: Iterable[Any] | None) -> None:
        """Warns once if the server is older by a minor version at least: it may not know of all
        that this client can ask for, and refuses what it does not know."""
        told = next((str(value) for key, value in trailers or () if key == _TRAILER), "")
        server, own = _minor(told), _minor(self._own)
        if server is None or own is None or server >= own:
            return
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(
                f"the server has version {told}, and this client {self._own}: what the server does "
                "not know yet it refuses. Upgrade the server, or install the client of its version",
                stacklevel=2,
            )


def _minor(version: str) -> tuple[int, int] | None:
    match = _VERSION.match(version)
    return match and (int(match[1]), int(match[2]))
