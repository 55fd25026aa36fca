"""Alerts as they are stored."""

from dataclasses import dataclass
from enum import IntEnum

from actserve_server.monitors.watched import Crossing, Decision, LevelName, WatchedCall


class Action(IntEnum):
    """What an alert does to its sample."""

    NONE = 0
    STOP = 1
    INTERVENE = 2
    PAUSE = 3


class DeliveryState(IntEnum):
    """How far an alert has come to its webhook."""

    NONE = 0
    WAITING = 1
    DELIVERED = 2
    DEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAlert:
    """An alert to be stored."""

    id: str
    """The last part of its name."""
    call: WatchedCall
    crossing: Crossing
    raised_at_us: int
    """Microseconds since 1970 began, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAlert:
    """An alert as it was when it was read."""

    sequence: int
    """Its place among those of its tenant."""
    id: str
    monitor: str
    """The last part of the name of its monitor."""
    monitor_etag: str
    level: LevelName
    score: float
    position: int
    call_id: str
    sample_index: int
    end_user: str
    trace_id: str
    raised_at_us: int
    """Microseconds since 1970 began, UTC."""
    action: Action
    decide_by_us: int
    """Of a sample that is paused: when it decides for itself."""
    decision: Decision | None
    text: str
    explanation: str
    delivery: DeliveryState
    delivery_attempts: int
    delivery_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFilter:
    """Which alerts. All that is set has to fit."""

    monitors: frozenset[str] = frozenset()
    """Of these monitors, by the last part of their names; of any, if empty."""
    level: LevelName | None = None
    end_user: str = ""
    """Of any, if empty."""
    undecided: bool = False
    """Only those about which nothing is decided yet."""
    before_us: int | None = None
    """Only those raised before."""

    def fits(self, alert: StoredAlert) -> bool:
        """Whether it is such an alert, as a stream tells it: by what never changes of it."""
        return (
            (not self.monitors or alert.monitor in self.monitors)
            and self.level in (None, alert.level)
            and self.end_user in ("", alert.end_user)
        )


@dataclass(frozen=True, slots=True)
class LostAlerts:
    """Alerts that are not stored any more, by number."""

    count: int


@dataclass(frozen=True, slots=True)
class AlertPage:
    """What comes after a place in the order of a tenant's alerts."""

    events: tuple[StoredAlert | LostAlerts, ...]
    end: int
    """Up to here nothing else comes."""
    has_more: bool
    """Whether there is more than this page holds."""
