"""Stored alerts for the wire."""

from google.protobuf import json_format

from actserve.v1 import alert_pb2 as pb
from actserve_server.monitors import alert_tokens
from actserve_server.monitors.stored_alerts import Action, StoredAlert
from actserve_server.monitors.watched import Decision
from actserve_server.rpc.resource_names import alert_name, monitor_name

DECISIONS = {
    pb.ALERT_DECISION_PROCEED: Decision.PROCEED,
    pb.ALERT_DECISION_STOP: Decision.STOP,
}
"""Those that callers may make."""
_WIRE_DECISIONS = {
    **{decision: wire for wire, decision in DECISIONS.items()},
    Decision.LAPSED: pb.ALERT_DECISION_LAPSED,
}


def to_wire(alert: StoredAlert, tenant: str, model_id: str) -> pb.Alert:
    """An alert of a tenant. Its level, its action and its delivery have the contract's numbers."""
    made = pb.Alert(
        name=alert_name(model_id, alert.id),
        monitor=monitor_name(model_id, alert.monitor),
        monitor_etag=alert.monitor_etag,
        level=alert.level.value,  # pyright: ignore[reportArgumentType]
        score=alert.score,
        position=alert.position,
        watched_call_id=alert.call_id,
        sample_index=alert.sample_index,
        end_user=alert.end_user,
        trace_id=alert.trace_id,
        action=alert.action.value,  # pyright: ignore[reportArgumentType]
        decision=_WIRE_DECISIONS.get(alert.decision) if alert.decision else None,
        text=alert.text,
        explanation=alert.explanation,
        resume_token=alert_tokens.write(tenant, model_id, alert.sequence),
    )
    made.raise_time.FromMicroseconds(alert.raised_at_us)
    if alert.action is Action.PAUSE:
        made.decide_by_time.FromMicroseconds(alert.decide_by_us)
    if alert.delivery:
        made.delivery.state = alert.delivery.value  # pyright: ignore[reportAttributeAccessIssue]
        made.delivery.attempts = alert.delivery_attempts
        made.delivery.error = alert.delivery_error
    return made


def to_json(alert: StoredAlert, tenant: str, model_id: str) -> bytes:
    """The same as JSON, in protobuf's form."""
    return json_format.MessageToJson(to_wire(alert, tenant, model_id), indent=None).encode()
