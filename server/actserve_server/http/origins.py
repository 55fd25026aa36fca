"""Which web pages may call.

A browser tells with every call that could change something from which page it comes. Programs tell
nothing, and are not bound by this. Pages of this server may call it, those of other origins only
where the operator has listed them.

Without tokens the name by which a page has reached this server must be one that nobody else can
give away: else a foreign page could have its own name lead here once it is loaded (DNS rebinding),
and would be taken for one of this server's.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

EVERY = "*"
"""Listed where pages of every origin may call."""


class Origins:
    """Those that `listed` are, and this server's own."""

    def __init__(self, listed: Sequence[str], *, known_callers: bool) -> None:
        self.listed = tuple(listed)
        self._known_callers = known_callers

    def refusal(self, origin: str | None, host: str) -> str | None:
        """Why a page of that origin may not call, by the headers of those names; None if it may."""
        if origin is None or origin in self.listed or EVERY in self.listed:
            return None
        place = _place(origin)
        if place is None or place.netloc != host or not host:
            return (
                f"pages of {origin[:200]} may not call this server; its operator can list that "
                "origin in http_origins"
            )
        if self._known_callers or _is_unmistakable(place.hostname or ""):
            return None
        return (
            f"a page may call this server, which asks for no tokens, by its address, not as "
            f"{host[:200]}; its operator can list {origin[:200]} in http_origins"
        )


def _place(origin: str) -> SplitResult | None:
    """Its parts; None of what no browser sends."""
    try:
        return urlsplit(origin)
    except ValueError:
        return None


def _is_unmistakable(name: str) -> bool:
    """Whether that name of a host cannot be made to lead elsewhere."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
