"""What watches calls, as servicers use it."""

from collections.abc import Collection
from dataclasses import dataclass, field

from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.alert_streams import AlertStreams
from actserve_server.monitors.alerts import StoredAlerts
from actserve_server.monitors.drift import ScoreHours
from actserve_server.monitors.fit_work import FitWork
from actserve_server.monitors.live import LiveMonitors
from actserve_server.monitors.registry import MonitorRegistry
from actserve_server.rpc.requests.monitor_fields import MonitorRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WatchingParts:
    """Monitors, and what they raise."""

    registry: MonitorRegistry
    live: LiveMonitors[MonitorRequest]
    scores: ScoreHours
    alerts: StoredAlerts
    alert_store: AlertStore
    alert_streams: AlertStreams
    alert_text_tokens: int = 0
    """Up to the token of an alert, that it holds the text of; none if zero."""
    fits: FitWork
    """Monitors that are being made of examples."""
    webhooks: Collection[str] = field(default_factory=tuple)
    """The addresses that alerts may be sent to."""
