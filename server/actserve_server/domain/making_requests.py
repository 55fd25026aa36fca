"""Requests that make something that is stored, and make it once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingRequest:
    """A request that makes something: the same again is answered with what it made."""

    id: str
    """Chosen by the caller."""
    sha256: bytes
    """Of the request as a whole, with its kind: equal ones have the same."""
