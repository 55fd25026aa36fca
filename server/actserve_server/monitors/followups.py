"""What follows alerts once they are stored. Nothing of this holds up the calls that raised them.

They are counted and sent to their webhooks, and the rows that raised them are explained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actserve_server import traces
from actserve_server.monitors import measures
from actserve_server.monitors.alert_explanations import AlertExplanations, RowToExplain
from actserve_server.monitors.stored_alerts import NewAlert
from actserve_server.monitors.watched import Crossing
from actserve_server.monitors.webhooks import Webhooks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FollowUps:
    """Of all alerts that this server raises."""

    webhooks: Webhooks
    explanations: AlertExplanations

    def stored(self, alerts: Sequence[NewAlert]) -> None:
        """Alerts are stored."""
        for alert in alerts:
            level, sequence = alert.crossing.level, alert.crossing.sequence
            measures.alert_raised(alert.crossing.watcher, level, alert.call.tenant)
            if level.explained_by is not None and sequence is not None:
                self.explanations.offer(
                    RowToExplain(
                        tenant=alert.call.tenant,
                        alert=alert.id,
                        nla=level.explained_by,
                        sites=alert.crossing.watcher.network.sites,
                        sequence=sequence,
                    )
                )
        if any(alert.crossing.level.webhook is not None for alert in alerts):
            self.webhooks.wake()


def trace(alert: str, crossing: Crossing) -> None:
    """Puts an alert on the span of the call that is being served, without its text."""
    traces.add_event(
        "alert",
        {
            "actserve.alert": alert,
            "actserve.monitor": crossing.watcher.monitor,
            "actserve.level": crossing.level.name.name.lower(),
            "actserve.action": measures.action_name(crossing.level),
            "actserve.score": crossing.score,
            "actserve.position": crossing.position,
            "actserve.sample_index": crossing.sample_index,
        },
    )
