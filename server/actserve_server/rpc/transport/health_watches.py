"""Who watches health, to which anybody may connect: a watch has no end, and each takes a place.

All places together are bounded. Where all are taken, those who have most of them give one to
whoever has fewer, so that nobody can keep health from others by watching it often.
"""

import asyncio
import ipaddress
from collections import Counter
from dataclasses import dataclass
from urllib.parse import unquote

MAX_WATCHES = 1024
"""At once. A client that has gRPC look after health has one for each connection."""
MAX_WATCHES_OF_CONNECTION = 16


class WatchesFullError(Exception):
    """Says why there is no place."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    connection: str
    address: str
    until: asyncio.Timeout


class HealthWatches:
    def __init__(self) -> None:
        self._places: dict[Place, None] = {}
        """In the order in which they were taken."""

    def __len__(self) -> int:
        return len(self._places)

    def take(self, peer: str, until: asyncio.Timeout) -> Place:
        """A place for a peer as gRPC names it; `until` is over when another gets it. Raises
        WatchesFullError."""
        held = sum(place.connection == peer for place in self._places)
        if held >= MAX_WATCHES_OF_CONNECTION:
            raise WatchesFullError(
                f"this connection watches health {held} times, the most that one may; end a watch, "
                "or ask by Check"
            )
        taken = Place(peer, _address(peer), until)
        if len(self._places) >= MAX_WATCHES:
            self._give_way(taken.address)
        self._places[taken] = None
        return taken

    def leave(self, place: Place) -> None:
        """Also of one that was taken away."""
        self._places.pop(place, None)

    def _give_way(self, address: str) -> None:
        """Ends the newest watch of the address that has most. Raises WatchesFullError if the one
        that asks would then have as many."""
        held = Counter(place.address for place in self._places)
        greediest, most = held.most_common(1)[0]
        if held[address] + 1 >= most:
            raise WatchesFullError(
                f"health is watched {len(self._places)} times, the most that may be; ask by Check"
            )
        place = next(each for each in reversed(self._places) if each.address == greediest)
        self.leave(place)
        place.until.reschedule(0)


def _address(peer: str) -> str:
    """Whose connection it is: a host with IPv6 has many addresses, which begin in the same way."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return host
    address = ipaddress.IPv6Address(host)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
