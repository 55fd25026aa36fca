"""Monitors that choose calls by themselves: which calls, and how many may choose the same one.

A monitor that would be one too many is not stored. What two replicas store at the same moment can
still be too many, so each call counts too, and is refused rather than watched by some of them.
"""

import random
from collections import Counter
from collections.abc import Mapping

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.live import LiveMonitor
from actserve_server.rpc.requests.monitor_fields import MonitorRequest, Watch

MAX_CHOOSING = 64
"""Monitors that watch a call which does not name them."""

Live = LiveMonitor[MonitorRequest]


def chooses(live: Live, end_user: str) -> bool:
    """Whether a monitor watches a call that does not name it. Raises why it cannot, if it
    should."""
    if live.ready is not None:
        return not live.ready.paused and _fits(live.ready.watch, end_user)
    if live.error is None:
        return False
    # What it is cannot be served here; which calls it is for can be told all the same.
    wire = pb.Monitor.FromString(live.stored.definition.message)
    watch = wire.watch
    chosen = not watch.end_users or end_user in watch.end_users
    if not wire.paused and not watch.named_only and chosen:
        raise live.error.again()
    return False


def check_count(count: int) -> None:
    """Raises FIELD_INVALID for a call that so many monitors have chosen, if they are too many."""
    if count > MAX_CHOOSING:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{count} monitors would watch the call without being named by it, but at most "
            f"{MAX_CHOOSING} may; pause or delete some, or set watch.named_only of them",
            field=("monitors",),
            metadata={"monitors": count, "limit": MAX_CHOOSING},
        )


def is_choosing(wire: pb.Monitor) -> bool:
    """Whether there may be calls that a monitor chooses by itself."""
    return not wire.paused and not wire.watch.named_only


def check_one_more(own: Mapping[str, Live], monitor: str, watch: pb.MonitorWatch) -> None:
    """Raises STORE_QUOTA_EXCEEDED where a monitor that chooses calls, stored like this, would be
    one too many for some call. `own` are those of its tenant by id; it may be one of them."""
    others = [
        live.ready.watch
        for name, live in own.items()
        if name != monitor and live.ready is not None and not live.ready.paused
    ]
    others = [each for each in others if not each.named_only]
    of_any = sum(not each.end_users for each in others)
    of_each = Counter(end_user for each in others for end_user in each.end_users)
    most = of_any + max((of_each[each] for each in watch.end_users or of_each), default=0)
    if most >= MAX_CHOOSING:
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{most} monitors that are not paused choose calls which this one would watch too, and "
            f"at most {MAX_CHOOSING} may choose the same call; pause or delete some, or set "
            "named_only",
            field=("monitor", "watch"),
            metadata={"limit": MAX_CHOOSING},
        )


def _fits(watch: Watch, end_user: str) -> bool:
    if watch.named_only or (watch.end_users and end_user not in watch.end_users):
        return False
    return watch.share >= 1 or random.random() < watch.share
