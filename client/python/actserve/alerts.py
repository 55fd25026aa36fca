"""Alerts: that a monitor's score came above a threshold, and what is done and decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from google.protobuf import timestamp_pb2

from actserve._checks import described
from actserve._names import short
from actserve._show.plain import plain
from actserve._times import time_from_proto
from actserve.errors import InvalidRequest
from actserve.v1 import alert_pb2 as pb

AlertLevel: TypeAlias = Literal["lower", "upper"]
"""A level of a monitor."""

AlertDecision: TypeAlias = Literal["proceed", "stop"]
"""What becomes of a sample that is paused."""

_LEVELS: Mapping[str, pb.AlertLevel] = {
    "lower": pb.ALERT_LEVEL_LOWER,
    "upper": pb.ALERT_LEVEL_UPPER,
}
_DECISIONS: Mapping[str, pb.AlertDecision] = {
    "proceed": pb.ALERT_DECISION_PROCEED,
    "stop": pb.ALERT_DECISION_STOP,
}
_DECIDED = {**_DECISIONS, "lapsed": pb.ALERT_DECISION_LAPSED}
"""What is told, of which the last is the server's to say."""
_ACTIONS = {
    pb.ALERT_ACTION_UNSPECIFIED: "",
    pb.ALERT_ACTION_STOP: "stop",
    pb.ALERT_ACTION_INTERVENE: "intervene",
    pb.ALERT_ACTION_PAUSE: "pause",
}


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """How far the delivery of an alert to a webhook has come."""

    state: str
    """"waiting", "delivered", or "dead" if it was given up."""
    attempts: int
    """How often it was tried."""
    error: str
    """Why the last attempt failed; empty if none did."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A score that came above a threshold. It holds nothing of a prompt or an output, unless the
    server's operator has it hold text."""

    name: str
    """Of the form models/{model}/alerts/{id}; empty in an answer that is watched."""
    monitor: str
    """The id of the monitor."""
    monitor_etag: str
    """Its etag as it was: which version of it."""
    level: str
    """"lower" or "upper"."""
    score: float
    """The score."""
    position: int
    """The position of the token that brought it there."""
    request_id: str
    """The server's id for the call that was watched, also in its logs."""
    sample: int
    """Which of its samples."""
    end_user: str
    """For whom the call was made; empty where that is not known."""
    trace_id: str
    """The id of the call's trace; empty if it had none."""
    raise_time: datetime
    """When, in UTC."""
    action: str
    """What is done because of it: "stop", "intervene", "pause" or nothing."""
    decide_by: datetime | None
    """Of a pause: when it decides for itself, in UTC."""
    decision: str
    """Of a pause: "proceed" or "stop"; "lapsed" if nobody has decided and nobody waits for it any
    more; or nothing as yet."""
    text: str
    """The text up to the token and some after it, where the operator has alerts hold text."""
    explanation: str
    """What an NLA says of the token's row; it may come later than the alert."""
    delivery: WebhookDelivery | None
    """How far a webhook has come; None if there is none."""
    resume_token: bytes = b""
    """What `alerts.watch(resume_from=...)` takes, as it takes the alert; empty in an answer that is
    watched."""
    lost_before: int = 0
    """Alerts, of whatever monitor, that were deleted between the one before and this one before
    `alerts.watch` could read them."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return short(self.name)

    def to_json(self) -> dict[str, Any]:
        """The alert as plain strings and numbers; the resume token is left out.

        print(json.dumps(alert.to_json()))
        """
        told: dict[str, Any] = plain(self)
        del told["resume_token"]
        told["raise_time"] = self.raise_time.isoformat()
        told["decide_by"] = self.decide_by.isoformat() if self.decide_by else None
        return told


def alert_from_proto(alert: pb.Alert) -> Alert:
    """An alert as the contract writes it."""
    return Alert(
        name=alert.name,
        monitor=short(alert.monitor),
        monitor_etag=alert.monitor_etag,
        level=level_name(alert.level),
        score=alert.score,
        position=alert.position,
        request_id=alert.watched_call_id,
        sample=alert.sample_index,
        end_user=alert.end_user,
        trace_id=alert.trace_id,
        raise_time=time_from_proto(alert.raise_time),
        action=_ACTIONS.get(alert.action, str(alert.action)),
        decide_by=time_from_proto(alert.decide_by_time)
        if alert.HasField("decide_by_time")
        else None,
        decision=_name(_DECIDED, alert.decision),
        text=alert.text,
        explanation=alert.explanation,
        delivery=_delivery(alert.delivery),
        resume_token=alert.resume_token,
    )


def level_name(level: int) -> str:
    """The name of a level; empty for none, its number if this client does not know it."""
    return _name(_LEVELS, level)


def level_to_proto(level: Any) -> pb.AlertLevel:
    """A level as the contract writes it; None stands for any level. Raises `InvalidRequest`."""
    return pb.ALERT_LEVEL_UNSPECIFIED if level is None else _value(_LEVELS, level, "level")


def decision_to_proto(decision: Any) -> pb.AlertDecision:
    """A decision as the contract writes it. Raises `InvalidRequest`."""
    return _value(_DECISIONS, decision, "decision")


def time_to_proto(time: Any, what: str) -> timestamp_pb2.Timestamp:
    """A time, which knows its zone, as the contract writes it. Raises `InvalidRequest`."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise InvalidRequest(
            f"{what} is {described(time)}; give a datetime with its time zone, as in "
            "datetime.now(timezone.utc)",
            reason="FIELD_INVALID",
            path=(what,),
        )
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(time.astimezone(timezone.utc))
    return made


def _delivery(told: pb.WebhookDelivery) -> WebhookDelivery | None:
    states = {
        pb.WEBHOOK_STATE_WAITING: "waiting",
        pb.WEBHOOK_STATE_DELIVERED: "delivered",
        pb.WEBHOOK_STATE_DEAD: "dead",
    }
    if not told.state:
        return None
    return WebhookDelivery(states.get(told.state, str(told.state)), told.attempts, told.error)


def _name(names: Mapping[str, int], value: int) -> str:
    return next((name for name, each in names.items() if each == value), str(value or ""))


def _value(names: Mapping[str, Any], given: Any, what: str) -> Any:
    if not isinstance(given, str) or given not in names:
        raise InvalidRequest(
            f"the {what} {described(given)} does not exist; use {' or '.join(map(repr, names))}",
            reason="FIELD_INVALID",
            path=(what,),
        )
    return names[given]
