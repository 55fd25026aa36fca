"""Monitors as they are stored. What a monitor is, its messages say, which nothing here reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a monitor does."""

    message: bytes
    """As it was sent, tensors without their data."""
    resolved: bytes = field(default=b"", repr=False)
    """The same with all that its sources name as tensors; empty while it has no probe yet."""
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By level, of how many interventions of `resolved` each one of `message` consists."""
    edges: bytes = field(default=b"", repr=False)
    """Between which scores are counted: float32, ascending, little-endian."""
    scored_by: str = ""
    """A digest of all that its scores depend on: where it is the same, they can be compared."""
    size_bytes: int = 0
    """Of its numbers."""
    fit: bytes = b""
    """How it was fitted, if it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMonitor:
    """A monitor to be stored."""

    id: str
    """The last part of its name; empty when the registry is to choose."""
    definition: Definition
    model_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMonitor:
    """A monitor that is stored."""

    tenant: str
    id: str
    definition: Definition
    model_path: str
    created_at_us: int
    """Microseconds since 1970 began, UTC."""
    updated_at_us: int
    etag: str
