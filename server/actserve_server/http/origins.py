"""Which web pages may call.

A browser tells with every call that could change something from which page it comes. Programs tell
nothing. Pages of this server may call it, those of other origins only where the operator has listed
them.

Without tokens the name by which a caller has reached this server must be one that nobody else can
give away: else a foreign page could have its own name lead here once it is loaded (DNS rebinding),
and would be taken for one of this server's. Of a page that only reads, browsers tell no origin, so
that this holds for every caller: the name is what stands in the header Host.
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
        self._names = {place.hostname for each in listed if (place := _place(each)) is not None}

    def refusal(self, origin: str | None, host: str) -> str | None:
        """Why a page of that origin may not call, by the headers of those names; None if it may."""
        if origin in self.listed or EVERY in self.listed:
            return None
        if origin is not None:
            place = _place(origin)
            if place is None or place.netloc != host or not host:
                return (
                    f"pages of {origin[:200]} may not call this server; its operator can list that "
                    "origin in http_origins"
                )
        # HTTP/1.0 has no such header; every browser sends it.
        if self._known_callers or not host or self._is_sure(_place(f"//{host}")):
            return None
        named = origin or f"http://{host}"
        return (
            "this server asks for no tokens, so that it is called by its address, and not as "
            f"{host[:200]}; its operator can list {named[:200]} in http_origins"
        )

    def _is_sure(self, place: SplitResult | None) -> bool:
        """Whether nobody else can make its name lead elsewhere."""
        name = (place and place.hostname) or ""
        return name in self._names or _is_unmistakable(name)


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
