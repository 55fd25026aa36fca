"""What monitors say of a sample, for the wire."""

import time
from collections.abc import Iterable

from actserve.v1 import alert_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve_server.monitors.watched import (
    Crossing,
    Intervene,
    Intervened,
    Level,
    LevelName,
    Pause,
    Stop,
    WatchedCall,
    WatcherScore,
)
from actserve_server.rpc.requests import tensor_fields
from actserve_server.rpc.requests.watched_calls import WatchedBy
from actserve_server.rpc.responses import reports

_LEVELS = {
    None: alert_pb2.ALERT_LEVEL_UNSPECIFIED,
    LevelName.LOWER: alert_pb2.ALERT_LEVEL_LOWER,
    LevelName.UPPER: alert_pb2.ALERT_LEVEL_UPPER,
}


def scores(found: Iterable[WatcherScore], detail: int) -> list[pb.MonitorScore]:
    """Of a sample, as the call wants them."""
    if detail == pb.SCORE_DETAIL_UNSPECIFIED:
        return []
    return [_score(each) for each in found]


def interventions(found: Iterable[Intervened], by: WatchedBy) -> list[pb.MonitorInterventions]:
    """What monitors changed in a sample of a call that is watched by these."""
    return [_interventions(each, by) for each in found]


def note_switched_on(by: WatchedBy, monitor: str, level: LevelName) -> None:
    """Notes for the audit log that a level of a monitor changes the call from now on."""
    _, request = by.monitors[monitor]
    reports.note(request.interventions_of(level))


def flagged(crossing: Crossing, call: WatchedCall) -> alert_pb2.Alert:
    """The alert as the call that is watched is told of it: it has no name there."""
    alert = alert_pb2.Alert(
        monitor=crossing.watcher.monitor,
        monitor_etag=crossing.watcher.etag,
        level=level(crossing.level),
        score=crossing.score,
        position=crossing.position,
        watched_call_id=call.call_id,
        sample_index=crossing.sample_index,
        end_user=call.end_user,
        trace_id=call.trace_id,
        action=action(crossing.level),
    )
    alert.raise_time.FromMicroseconds(round(time.time() * 1e6))
    return alert


def level(reached: Level | None) -> alert_pb2.AlertLevel:
    return _LEVELS[reached and reached.name]


def action(of: Level) -> alert_pb2.AlertAction:
    match of.action:
        case Stop():
            return alert_pb2.ALERT_ACTION_STOP
        case Intervene():
            return alert_pb2.ALERT_ACTION_INTERVENE
        case Pause():
            return alert_pb2.ALERT_ACTION_PAUSE
        case None:
            return alert_pb2.ALERT_ACTION_UNSPECIFIED


def _interventions(found: Intervened, by: WatchedBy) -> pb.MonitorInterventions:
    _, monitor = by.monitors[found.monitor]
    return pb.MonitorInterventions(
        monitor=found.monitor,
        level=_LEVELS[found.level],
        first_position=found.first_position,
        interventions=reports.to_wire(monitor.interventions_of(found.level), found.reports),
    )


def _score(found: WatcherScore) -> pb.MonitorScore:
    if not found.tokens:
        return pb.MonitorScore(monitor=found.watcher.monitor)
    made = pb.MonitorScore(
        monitor=found.watcher.monitor,
        tokens=found.tokens,
        score=found.score,
        highest_score=found.highest,
        highest_position=found.highest_position,
        level=level(found.level),
    )
    if found.positions is not None and found.token_scores is not None:
        made.positions.extend(found.positions.tolist())
        made.token_scores.CopyFrom(tensor_fields.to_wire(found.token_scores))
    return made
