"""Which alerts a request means."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from actserve.v1 import alert_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.monitors.stored_alerts import AlertFilter
from actserve_server.monitors.watched import Decision, LevelName
from actserve_server.rpc.requests import monitor_names, pages
from actserve_server.rpc.requests.monitor_fields import check_end_user
from actserve_server.rpc.responses.alert_messages import DECISIONS

MAX_MONITORS = 64
"""That one filter names."""
_LEVELS = {
    alert_pb2.ALERT_LEVEL_UNSPECIFIED: None,
    alert_pb2.ALERT_LEVEL_LOWER: LevelName.LOWER,
    alert_pb2.ALERT_LEVEL_UPPER: LevelName.UPPER,
}
_LATEST_S = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Of what a Timestamp may say."""


def alert_filter(
    wire: pb.AlertFilter, info: ModelInfo, field: FieldPath = ("filter",)
) -> AlertFilter:
    """Which alerts; all when nothing is set."""
    if len(wire.monitors) > MAX_MONITORS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(wire.monitors)} monitors are named; name at most {MAX_MONITORS}",
            field=(*field, "monitors"),
            metadata={"monitors": len(wire.monitors), "limit": MAX_MONITORS},
        )
    if wire.level not in _LEVELS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"level {wire.level} is unknown; use one of {', '.join(alert_pb2.AlertLevel.keys())}",
            field=(*field, "level"),
        )
    check_end_user(wire.end_user, (*field, "end_user"))
    before = None
    if wire.HasField("before_time"):
        before = _microseconds(wire.before_time, (*field, "before_time"))
    return AlertFilter(
        monitors=frozenset(
            monitor_names.monitor(name, info, (*field, "monitors", index))
            for index, name in enumerate(wire.monitors)
        ),
        level=_LEVELS[wire.level],
        end_user=wire.end_user,
        undecided=wire.undecided,
        before_us=before,
    )


def stream_filter(wire: pb.AlertFilter, info: ModelInfo) -> AlertFilter:
    """Which alerts of a stream, where each comes once, as it is then."""
    wanted = alert_filter(wire, info)
    for name, is_set in (
        ("undecided", wanted.undecided),
        ("before_time", wanted.before_us is not None),
    ):
        if is_set:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name} is not for a stream, which tells alerts as they are raised; leave it "
                "unset, or use ListAlerts",
                field=("filter", name),
            )
    return wanted


def decision(wire: int) -> Decision:
    """What is decided. Raises FIELD_REQUIRED."""
    found = DECISIONS.get(wire)  # pyright: ignore[reportArgumentType]
    if found is None:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "decision is not set, or unknown; use ALERT_DECISION_PROCEED or ALERT_DECISION_STOP",
            field=("decision",),
        )
    return found


def before_place(page_token: str) -> int | None:
    """Where the page before ended; None for the first one. Raises FIELD_INVALID."""
    last = pages.after(page_token)
    if not last:
        return None
    if not (last.isascii() and last.isdecimal() and len(last) < 19):
        raise pages.not_ours()
    return int(last)


def _microseconds(wire: Timestamp, field: FieldPath) -> int:
    if not (0 <= wire.seconds <= _LATEST_S and 0 <= wire.nanos < 1_000_000_000):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{wire.seconds} s and {wire.nanos} ns is no time; use one from 1970 to 9999",
            field=field,
        )
    return wire.ToMicroseconds()
