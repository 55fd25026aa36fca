"""What Prometheus is told of monitors, alerts, webhooks and explanations of alerts.

The series have no tenant: whoever reads metrics is the operator, and tenants come and go. Monitors
are made by callers, so that only so many have series of their own (`fair_series.py`); what all
others do is counted together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from types import NoneType

from prometheus_client import Counter, Gauge, Histogram

from actserve_server.domain.principals import account
from actserve_server.monitors.fair_series import FairSeries
from actserve_server.monitors.watched import (
    Intervene,
    Level,
    LevelName,
    Pause,
    Stop,
    Watcher,
    WatcherScore,
)

MONITORS = 200
"""Monitors that have series of their own at a time."""
OTHER = "other"
"""What all others are counted under."""
_ACTIONS = {NoneType: "none", Stop: "stop", Intervene: "intervene", Pause: "pause"}

_SCORES = Histogram(
    "actserve_monitor_scores",
    "The highest scores of samples that ended.",
    ("monitor",),
    buckets=(-10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10),
)
_TOKENS = Counter("actserve_monitor_tokens_total", "Tokens scored.", ("monitor",))
_SECONDS = Counter(
    "actserve_monitor_seconds_total",
    "Seconds of the server's process spent on scores: on those of many monitors at once, in equal "
    "parts.",
    ("monitor",),
)
_ALERTS = Counter(
    "actserve_alerts_total", "Alerts raised and stored.", ("monitor", "level", "action")
)
_STORED = Gauge("actserve_alerts_stored", "Alerts in the database, of all replicas.")
_WATCHERS = Gauge("actserve_alert_watchers", "WatchAlerts calls that are open.")
_DELIVERIES = Counter(
    "actserve_webhook_deliveries_total", "Deliveries to webhooks that are over.", ("state",)
)
_FAILURES = Counter(
    "actserve_webhook_failures_total", "Attempts to deliver to a webhook that failed."
)
_WAITING = Gauge(
    "actserve_webhook_deliveries_waiting",
    "Deliveries in the database that are not over, of all replicas.",
)
_EXPLANATIONS = Counter(
    "actserve_alert_explanations_total", "Explanations that alerts asked for.", ("outcome",)
)


class DeliveryEnd(StrEnum):
    """How a delivery ended."""

    DELIVERED = "delivered"
    DEAD = "dead"


class ExplanationEnd(StrEnum):
    """What became of an explanation that an alert asked for."""

    DONE = "done"
    DROPPED = "dropped"
    """There was no time left for it."""
    FAILED = "failed"


def _end(monitor: str) -> None:
    """Ends the series of a monitor."""
    for each in (_SCORES, _TOKENS, _SECONDS):
        each.remove(monitor)
    for level in LevelName:
        for action in _ACTIONS.values():
            _ALERTS.remove(monitor, level.name.lower(), action)


_own = FairSeries(MONITORS, _end)


def tokens_scored(scores: Sequence[WatcherScore], seconds: float, tenant: str) -> None:
    """The tokens of a sample were scored by some monitors of a tenant, which took so long
    together."""
    for each in scores:
        label = _label(each.watcher, tenant)
        _TOKENS.labels(label).inc(each.tokens)
        _SECONDS.labels(label).inc(seconds / len(scores))


def sample_ended(scores: Sequence[WatcherScore], tenant: str) -> None:
    """A sample that was watched ended by itself or by a monitor."""
    for each in scores:
        if each.tokens:
            _SCORES.labels(_label(each.watcher, tenant)).observe(each.highest)


def alert_raised(watcher: Watcher, level: Level, tenant: str) -> None:
    """An alert was stored."""
    _alerts(_label(watcher, tenant), level).inc()


def _label(watcher: Watcher, tenant: str) -> str:
    if not _own.has(watcher.monitor, account(tenant)):
        return OTHER
    # At zero from the beginning, so that a rate over its first alert is right.
    for level in watcher.levels:
        _alerts(watcher.monitor, level)
    return watcher.monitor


def _alerts(label: str, level: Level) -> Counter:
    return _ALERTS.labels(label, level.name.name.lower(), action_name(level))


def alerts_stored(count: int) -> None:
    """So many alerts are in the database."""
    _STORED.set(count)


@contextmanager
def alert_watcher() -> Iterator[None]:
    """A WatchAlerts call is open while the block runs."""
    with _WATCHERS.track_inprogress():
        yield


def delivery_failed() -> None:
    """An attempt to deliver failed, whether or not there will be another."""
    _FAILURES.inc()


def delivery_ended(how: DeliveryEnd) -> None:
    _DELIVERIES.labels(how).inc()


def deliveries_waiting(count: int) -> None:
    """So many deliveries in the database are not over."""
    _WAITING.set(count)


def explanation_ended(how: ExplanationEnd) -> None:
    _EXPLANATIONS.labels(how).inc()


def action_name(level: Level) -> str:
    """What an alert of this level does to its sample, in a word."""
    return _ACTIONS[type(level.action)]


def _prepare() -> None:
    """Makes series exist at zero whose labels are known, so that a rate over the first event is
    right."""
    for end in DeliveryEnd:
        _DELIVERIES.labels(end)
    for outcome in ExplanationEnd:
        _EXPLANATIONS.labels(outcome)


_prepare()
