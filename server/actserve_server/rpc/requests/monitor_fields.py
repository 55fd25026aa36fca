"""Monitors from the wire, parsed once when they are stored or read, and then placed into each
sequence that they watch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import PositionList, Positions, TokenIdPositions
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.monitors.monitor_registry import ID
from actserve_server.monitors.watched import Intervene, Level, LevelName, Pause, Stop, Watcher
from actserve_server.rpc.requests import (
    dose_limit,
    interventions,
    network_fields,
    position_selectors,
    probe_fields,
)
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.required_fields import required
from actserve_server.rpc.requests.vector_sources import Found

MAX_END_USERS = 64
"""That one monitor chooses by."""
MAX_END_USER_BYTES = 256
_SHOWN = 64
"""Characters of what was sent that an error tells again."""

LEVELS = {"lower": LevelName.LOWER, "upper": LevelName.UPPER}
"""By their fields, the lower first."""
Parts = Mapping[str, Sequence[int]]
"""By level, how many interventions one after the other make one of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Which calls are watched, besides those that name the monitor: those that fit all of it."""

    named_only: bool = False
    end_users: frozenset[str] = frozenset()
    """Any, if empty."""
    share: float = 1.0
    """Of calls, chosen at random."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelRequest:
    """A level before the positions of its interventions are resolved."""

    name: LevelName
    threshold: float
    action: Stop | Pause | tuple[InterventionRequest, ...] | None
    flag: bool
    explained_by: str | None
    webhook: str | None

    @property
    def interventions(self) -> tuple[InterventionRequest, ...]:
        """What it may come to switch on."""
        return self.action if isinstance(self.action, tuple) else ()

    def at(self, prompt: TokenizedPrompt) -> Level:
        action = self.action
        if isinstance(action, tuple):
            action = Intervene(
                tuple(
                    made
                    for each in action
                    for made in each.made(position_selectors.what_is_there(each.positions, prompt))
                )
            )
        return Level(self.name, self.threshold, action, self.flag, self.explained_by, self.webhook)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MonitorRequest:
    """A monitor before it watches a sequence."""

    network: ProbeNetwork
    aggregator: Aggregator
    positions: Positions
    levels: tuple[LevelRequest, ...]
    """One or two, the lower first."""
    paused: bool
    watch: Watch

    @property
    def interventions(self) -> list[InterventionRequest]:
        """All that it may come to switch on."""
        return [edit for each in self.levels for edit in each.interventions]

    def interventions_of(self, level: LevelName) -> tuple[InterventionRequest, ...]:
        """What a level may come to switch on."""
        return next(each.interventions for each in self.levels if each.name is level)

    def watcher(self, monitor: str, etag: str, prompt: TokenizedPrompt) -> Watcher:
        """The monitor of that name and version, as it watches what begins with a prompt. What the
        sequence does not have of its positions is passed over."""
        return Watcher(
            monitor=monitor,
            etag=etag,
            network=self.network,
            aggregator=self.aggregator,
            selection=position_selectors.what_is_there(self.positions, prompt),
            levels=tuple(each.at(prompt) for each in self.levels),
        )


def new_id(wire: str) -> str:
    """The id that a monitor is to have; empty when the server is to choose. Raises
    FIELD_INVALID."""
    if wire and not ID.fullmatch(wire):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"monitor_id is {wire[:_SHOWN]!r}; use 1 to 63 lower-case letters, digits and "
            "hyphens, from a letter on, or leave it unset",
            field=("monitor_id",),
        )
    return wire


def monitor_request(
    wire: pb.Monitor, found: Found, field: FieldPath = ("monitor",), parts: Parts | None = None
) -> MonitorRequest:
    """A monitor whose sources are found. `parts` says which of its interventions are one. To be
    called in a thread."""
    check_served(found.info)
    network = _network(wire, found, field)
    positions = position_selectors.selector(wire, found.info, (*field, "positions"))
    _check_not_empty(positions, (*field, "positions"))
    return MonitorRequest(
        network=network,
        aggregator=aggregator(wire, attends=network.queries is not None, field=field),
        positions=positions,
        levels=_levels(wire, found, parts or {}, field),
        paused=wire.paused,
        watch=_watch(wire.watch, (*field, "watch")),
    )


def aggregator(
    wire: pb.Monitor | pb.FitMonitorRequest, *, attends: bool, field: FieldPath
) -> Aggregator:
    """How the outputs of a network, with queries or without, become a score."""
    at = (*field, "aggregator")
    attention = wire.aggregator.WhichOneof("smoothing") == "attention"
    if attends and not attention:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the network has queries, which say how much a token counts, but the aggregator has "
            "no attention smoothing; set it, or leave the queries out",
            field=(*at, "attention"),
        )
    if attention and not attends:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "attention smoothing takes a network with queries; send them, or smooth otherwise",
            field=(*at, "attention"),
        )
    return probe_fields.aggregator(wire.aggregator, at, attends=attends)


def check_both_levels(
    made: MonitorRequest, info: ModelInfo, field: FieldPath = ("monitor",)
) -> None:
    """Raises TOO_MANY_INTERVENTIONS or DOSE_TOO_LARGE where each level is within bounds, and what
    both switch on is not: that of the upper one comes on top, and no call could be watched. To be
    called in a thread."""
    counts = [len(each.action) for each in made.levels if isinstance(each.action, tuple)]
    if len(counts) < 2:
        return
    lower, upper = counts
    if lower + upper > info.limits.max_interventions:
        raise ActserveError(
            Reason.TOO_MANY_INTERVENTIONS,
            f"the lower level switches on {lower} interventions and the upper one {upper} on top "
            f"of them, {lower + upper} together, but a sequence may have at most "
            f"{info.limits.max_interventions}; send fewer, or let one level do something else",
            field=(*field, "upper", "intervene", "interventions"),
            metadata={"interventions": lower + upper, "limit": info.limits.max_interventions},
        )
    edits = made.interventions
    dose_limit.check_all_on([each.parts for each in edits], [each.field for each in edits], info)


def check_served(info: ModelInfo) -> None:
    """Raises SITE_NOT_SERVED where the engine has not proven what monitors take."""
    if reason := info.monitors_unserved:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"monitors are not served for {info.id}: {reason}",
            metadata={"model": info.id},
        )


def _network(wire: pb.Monitor, found: Found, field: FieldPath) -> ProbeNetwork:
    if wire.probes and wire.HasField("network"):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the monitor has probes and a network; send one of the two, and in an update both "
            "paths",
            field=(*field, "network"),
        )
    if wire.HasField("network"):
        return network_fields.network(wire.network, found, (*field, "network"))
    if not wire.probes:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the monitor has no probe; send probes, or a network",
            field=(*field, "probes"),
        )
    return network_fields.linear(wire.probes, found, (*field, "probes"))


def _levels(
    wire: pb.Monitor, found: Found, parts: Parts, field: FieldPath
) -> tuple[LevelRequest, ...]:
    levels = tuple(
        _level(getattr(wire, name), of, found, parts.get(name), (*field, name))
        for name, of in LEVELS.items()
        if wire.HasField(name)  # type: ignore[arg-type]
    )
    if not levels:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the monitor has no level; set lower, upper or both",
            field=(*field, "upper"),
        )
    if len(levels) == 2 and levels[0].threshold >= levels[1].threshold:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the threshold of the upper level, {levels[1].threshold:g}, is not above that of "
            f"the lower one, {levels[0].threshold:g}; exchange them, or set one level",
            field=(*field, "upper", "threshold"),
            metadata={"lower": levels[0].threshold, "upper": levels[1].threshold},
        )
    return levels


def _level(
    wire: pb.MonitorLevel,
    name: LevelName,
    found: Found,
    parts: Sequence[int] | None,
    field: FieldPath,
) -> LevelRequest:
    threshold = required(wire, "threshold", "a score", field)
    if not math.isfinite(threshold):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the threshold is {threshold}; it must be finite",
            field=(*field, "threshold"),
        )
    action = None
    match wire.WhichOneof("action"):
        case "stop":
            action = Stop()
        case "pause":
            action = _pause(wire.pause, found.info, (*field, "pause"))
        case "intervene":
            action = _intervene(wire.intervene, found, parts, (*field, "intervene"))
        case _:
            pass
    if wire.HasField("webhook") and not wire.webhook.url:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the webhook has no url; send one that the server's operator allows",
            field=(*field, "webhook", "url"),
        )
    return LevelRequest(
        name=name,
        threshold=threshold,
        action=action,
        flag=wire.flag,
        explained_by=wire.explain.nla if wire.HasField("explain") else None,
        webhook=wire.webhook.url or None,
    )


def _pause(wire: pb.PauseAction, info: ModelInfo, field: FieldPath) -> Pause:
    most = info.limits.max_pause_seconds
    limit_s = float(most)
    if wire.HasField("time_limit"):
        limit_s = wire.time_limit.seconds + wire.time_limit.nanos / 1e9
        if not 0 < limit_s <= most:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"time_limit is {limit_s:g} s; it must be above 0 and at most {most} s",
                field=(*field, "time_limit"),
                metadata={"time_limit": limit_s, "limit": most},
            )
    return Pause(limit_s, wire.proceed_after)


def _intervene(
    wire: pb.InterveneAction, found: Found, parts: Sequence[int] | None, field: FieldPath
) -> tuple[InterventionRequest, ...]:
    at = (*field, "interventions")
    if not wire.interventions:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "there are no interventions; send at least one", field=at
        )
    for index, each in enumerate(wire.interventions):
        if each.HasField("features"):
            raise ActserveError(
                Reason.FIELD_INVALID,
                "a monitor copies what it names, and a whole dictionary is too large for that; add "
                "what the feature writes (VectorSource.feature)",
                field=(*at, index, "features"),
            )
    if parts is None:
        interventions.check_count(len(wire.interventions), found.info, at)
    edits = interventions.parsed(wire.interventions, found, at, limits_dose=False)
    if parts is not None:
        edits = _joined(edits, parts)
    for each in edits:
        _check_not_empty(each.positions, (*each.field, "positions"))
        if each.row_each is not None:
            raise ActserveError(
                Reason.TENSOR_SIZE_MISMATCH,
                "there is a row for each position, but how many positions a monitor will change "
                "is not known; give one row of shape [width] for all",
                field=each.row_each,
            )
    # None of them may find anything to change.
    edits = tuple(replace(each, allow_unused=True) for each in edits)
    return interventions.limited(edits, found.info)


def _joined(
    edits: Sequence[InterventionRequest], parts: Sequence[int]
) -> tuple[InterventionRequest, ...]:
    """Interventions that are parts of one, together: so that its condition is decided once."""
    rest = iter(edits)
    groups = [[next(rest) for _ in range(count)] for count in parts]
    return tuple(
        replace(group[0], parts=tuple(part for each in group for part in each.parts))
        for group in groups
    )


def _watch(wire: pb.MonitorWatch, field: FieldPath) -> Watch:
    if wire.named_only and (wire.end_users or wire.HasField("share")):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "named_only watches the calls that name the monitor, whoever they are for; leave "
            "end_users and share unset",
            field=(*field, "named_only"),
        )
    if len(wire.end_users) > MAX_END_USERS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {len(wire.end_users)} end users; name at most {MAX_END_USERS}",
            field=(*field, "end_users"),
            metadata={"end_users": len(wire.end_users), "limit": MAX_END_USERS},
        )
    for index, end_user in enumerate(wire.end_users):
        check_end_user(end_user, (*field, "end_users", index))
        if not end_user:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "the end user is empty; name one, or leave end_users empty for all calls",
                field=(*field, "end_users", index),
            )
    share = wire.share if wire.HasField("share") else 1.0
    if not 0 < share <= 1:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"share is {share:g}; it must be above 0 and at most 1",
            field=(*field, "share"),
            metadata={"share": share},
        )
    return Watch(named_only=wire.named_only, end_users=frozenset(wire.end_users), share=share)


def check_end_user(end_user: str, field: FieldPath) -> None:
    """Raises FIELD_INVALID for what is no end user of a call."""
    size = len(end_user.encode())
    if size > MAX_END_USER_BYTES or "\0" in end_user:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the end user has {size} bytes; use at most {MAX_END_USER_BYTES}, without NUL "
            "characters",
            field=field,
            metadata={"bytes": size, "limit": MAX_END_USER_BYTES},
        )


def _check_not_empty(positions: Positions, field: FieldPath) -> None:
    """Refuses now what would select nothing in any sequence."""
    match positions:
        case PositionList(()):
            at = (*field, "list", "positions")
        case TokenIdPositions(()):
            at = (*field, "token_ids", "ids")
        case _:
            return
    raise ActserveError(
        Reason.FIELD_REQUIRED, "the selector names nothing; name at least one", field=at
    )
