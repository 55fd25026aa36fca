"""Which cells of a sweep its reader has, as a token that the reader sends to go on.

Nothing is stored: the token holds all, in at most 8 KiB for the most cells that a sweep may have.
It begins with a hash of the request that it is of and of what follows, so one of another request,
or a damaged one, is found out. Who makes one up gets a part of an answer of their own.
"""

import hashlib

from actserve_server.domain.errors import ActserveError, Reason

_TAG_BYTES = 16
_COUNT_BYTES = 4


class CellsHad:
    """The cells, by number, that the reader of a sweep of this request has."""

    def __init__(self, digest: bytes, cells: int) -> None:
        """`digest` is of the request, and `cells` how many it has."""
        self._digest = digest
        self._cells = cells
        self._count = 0
        self._first_missing = 0
        self._bits = bytearray(-(-cells // 8))

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count

    def add(self, number: int) -> None:
        if number in self:
            return
        self._bits[number >> 3] |= 1 << (number & 7)
        self._count += 1
        while self._first_missing < self._cells and self._first_missing in self:
            self._first_missing += 1

    def token(self) -> bytes:
        """How many cells there are from the first on without a gap, rounded down to eight, and the
        bits of those behind: cells come nearly in order, so these are few."""
        whole = self._first_missing >> 3
        rest = bytes(self._bits[whole:]).rstrip(b"\0")
        payload = whole.to_bytes(_COUNT_BYTES, "little") + rest
        return self._tag(payload) + payload

    @staticmethod
    def of(token: bytes, digest: bytes, cells: int) -> "CellsHad":
        """What a token says; nothing if it is empty. Raises RESUME_TOKEN_INVALID."""
        had = CellsHad(digest, cells)
        if not token:
            return had
        tag, payload = token[:_TAG_BYTES], token[_TAG_BYTES:]
        whole = int.from_bytes(payload[:_COUNT_BYTES], "little")
        rest = payload[_COUNT_BYTES:]
        if had._tag(payload) != tag or whole + len(rest) > len(had._bits):
            raise ActserveError(
                Reason.RESUME_TOKEN_INVALID,
                "the token is not of a cell of this request, as this model answers it; send the "
                "request that it came from with all else as it was, or none to begin anew",
                field=("resume_token",),
            )
        had._bits[:whole] = b"\xff" * whole
        had._bits[whole : whole + len(rest)] = rest
        bits = int.from_bytes(had._bits, "little") & ((1 << cells) - 1)
        had._count = bits.bit_count()
        had._first_missing = (~bits & (bits + 1)).bit_length() - 1
        return had

    def _tag(self, payload: bytes) -> bytes:
        return hashlib.sha256(b"sweep\n" + self._digest + payload).digest()[:_TAG_BYTES]
