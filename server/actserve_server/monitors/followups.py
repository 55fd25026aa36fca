"""What follows an alert once it is stored. Nothing of this holds up the call.

It is counted, told to the trace of its call and sent to its webhook, and the row that raised it is
explained.
"""

from dataclasses import dataclass

from actserve_server import traces
from actserve_server.monitors import measures
from actserve_server.monitors.alert_explanations import AlertExplanations, RowToExplain
from actserve_server.monitors.watched import Crossing, WatchedCall
from actserve_server.monitors.webhooks import Webhooks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FollowUps:
    """Of all alerts that this server raises."""

    webhooks: Webhooks
    explanations: AlertExplanations

    def stored(self, call: WatchedCall, alert: str, crossing: Crossing) -> None:
        """An alert is stored, by this id. Called in the task of the call that raised it, or in one
        that came from it."""
        watcher, level = crossing.watcher, crossing.level
        measures.alert_raised(watcher, level)
        traces.add_event(
            "alert",
            {
                "actserve.alert": alert,
                "actserve.monitor": watcher.monitor,
                "actserve.level": level.name.name.lower(),
                "actserve.action": measures.action_name(level),
                "actserve.score": crossing.score,
                "actserve.position": crossing.position,
                "actserve.sample_index": crossing.sample_index,
            },
        )
        if level.webhook is not None:
            self.webhooks.wake()
        if level.explained_by is not None and crossing.sequence is not None:
            self.explanations.offer(
                RowToExplain(
                    tenant=call.tenant,
                    alert=alert,
                    nla=level.explained_by,
                    sequence=crossing.sequence,
                )
            )
