"""Collected chunks: what arrived of one sequence, and whether it is all that must."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from actserve.errors import BadResponse

K = TypeVar("K", bound=Hashable)
C = TypeVar("C")


class Collected(Generic[K, C]):
    """The chunks of one sequence by what they are of, in the order of their arrival.

    Without `collect` only the positions are remembered, which is enough to notice that some are
    missing.
    """

    def __init__(self, what: str, keys: Iterable[K], *, collect: bool) -> None:
        self._what = what
        self._collect = collect
        self._positions: dict[K, list[int]] = {key: [] for key in keys}
        self._chunks: dict[K, list[C]] = {key: [] for key in self._positions}

    def add(self, key: K, positions: Sequence[int], chunk: C) -> C:
        """Takes and returns one chunk, which covers these positions."""
        self._positions[key].extend(positions)
        if self._collect:
            self._chunks[key].append(chunk)
        return chunk

    def finish(self, promised: Iterable[int]) -> dict[K, list[C]]:
        """The chunks, if each key has exactly the promised positions; nothing if none were kept."""
        promised = sorted(promised)
        for key, received in self._positions.items():
            if received != promised:
                raise BadResponse(f"{self._what} of {key} {_difference(promised, received)}")
        return self._chunks if self._collect else {}


def _difference(promised: list[int], received: list[int]) -> str:
    if missing := sorted(set(promised) - set(received)):
        return (
            f"are missing at {len(missing)} of {len(promised)} positions, the first at {missing[0]}"
        )
    return "came twice, out of order or unasked"
