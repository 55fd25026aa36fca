"""What watches calls, as servicers use it."""

from collections.abc import Collection
from dataclasses import dataclass, field

from actserve_server.monitors.live import LiveMonitors
from actserve_server.monitors.registry import MonitorRegistry
from actserve_server.rpc.requests.monitor_fields import MonitorRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WatchingParts:
    """Monitors, and what they raise."""

    registry: MonitorRegistry
    live: LiveMonitors[MonitorRequest]
    webhooks: Collection[str] = field(default_factory=tuple)
    """The addresses that alerts may be sent to."""
