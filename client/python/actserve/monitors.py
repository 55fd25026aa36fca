"""Monitors: what watches generation by probes, acts where their score is high, and tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described, finite, several, unicode
from actserve._names import Named, named, short
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve._times import time_from_proto
from actserve.aggregators import Aggregator, AggregatorLike, aggregator_from_proto
from actserve.alerts import level_name
from actserve.errors import BadResponse, InvalidRequest
from actserve.interventions import interventions_to_proto
from actserve.monitor_fits import FitReport, report_from_proto
from actserve.positions import Positions
from actserve.probe_networks import ProbeNetwork
from actserve.probes import Probe
from actserve.sites import site_name
from actserve.steering_vectors import Intervene
from actserve.tensors import Float32Array, decode
from actserve.v1 import generation_service_pb2, positions_pb2
from actserve.v1 import monitor_service_pb2 as pb

MONITORS = "monitors"
NLAS = "nlas"


ScoreDetail: TypeAlias = Literal["sample", "token"]
"""Which scores of monitors a generation tells: those of each sample, or with the score as of each
token."""

_DETAILS: Mapping[str, generation_service_pb2.ScoreDetail] = {
    "sample": generation_service_pb2.SCORE_DETAIL_SAMPLE,
    "token": generation_service_pb2.SCORE_DETAIL_TOKEN,
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends a sample after the token that brought the score above the threshold, which is the last
    one sent; if that is one of the prompt, before any is generated."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Holds a sample back for a second opinion: from the token that brought the score above the
    threshold on nothing is sent, until `client.alerts.decide` or a webhook says so, or for
    `time_limit` seconds, the server's limit when None. After that it stops, or with
    `proceed_after` goes on. Raises `InvalidRequest`."""

    time_limit: float | None = None
    proceed_after: bool = False

    def __post_init__(self) -> None:
        if self.time_limit is not None and finite(self.time_limit, "time limit") <= 0:
            raise InvalidRequest(
                f"the time limit is {self.time_limit} seconds; it must be above 0",
                reason="FIELD_INVALID",
            )


Action: TypeAlias = Stop | Pause | Intervene | Iterable[Intervene]
"""What becomes of a sample: `Stop()`, `Pause()`, or what steers it from the next token on, as
`intervene=` takes it: interventions, steering vectors or stored vectors, one or several."""


@dataclass(frozen=True, eq=False)
class Level:
    """A threshold, and what happens once in a sample when its score comes above it. An alert is
    raised whatever else is done.

    - `threshold`: finite.
    - `action`: what becomes of the sample; it goes on when None.
    - `flag`: whether the call that is watched is told, as `generation.alerts`.
    - `explain`: whether an NLA explains the row of the token, in the background: True for the only
      one of the monitor's sites, or its id.
    - `webhook`: an address that the alert is sent to, which the server's operator allows.

    Checks what it is given when it is made, and raises `InvalidRequest`.

        Level(0.9, Stop(), flag=True)
        Level(0.5, calm.add(4.0, sites="resid_post.12"))
    """

    threshold: float
    action: Action | None = None
    flag: bool = False
    explain: bool | str | Named = False
    webhook: str | None = None

    def __post_init__(self) -> None:
        action: Any = self.action
        if isinstance(action, Intervene):
            action = (action,)
        if not isinstance(action, Stop | Pause | None):
            if not isinstance(action, Iterable) or isinstance(action, str):
                raise _no_action(action)
            action = tuple(action)
            if not action or not all(isinstance(each, Intervene) for each in action):
                raise _no_action(action)
        explain: Any = self.explain
        if not isinstance(explain, bool):
            explain = named(NLAS, explain)
        webhook: Any = self.webhook
        if not isinstance(webhook, str | None):
            raise InvalidRequest(
                f"the webhook is {described(webhook)}; give its address", reason="FIELD_INVALID"
            )
        object.__setattr__(self, "threshold", finite(self.threshold, "threshold"))
        object.__setattr__(self, "action", action)
        object.__setattr__(self, "explain", explain)

    def to_proto(self) -> pb.MonitorLevel:
        """The level as the contract writes it."""
        made = pb.MonitorLevel(threshold=self.threshold, flag=bool(self.flag))
        match self.action:
            case None:
                pass
            case Stop():
                made.stop.SetInParent()
            case Pause(time_limit, proceed_after):
                made.pause.SetInParent()
                made.pause.proceed_after = bool(proceed_after)
                if time_limit is not None:
                    made.pause.time_limit.FromNanoseconds(round(time_limit * 1e9))
            case intervene:
                made.intervene.interventions.extend(interventions_to_proto(intervene))
        if self.explain:
            nla = self.explain.name if isinstance(self.explain, Named) else ""
            made.explain.CopyFrom(pb.ExplainAction(nla=nla))
        if self.webhook:
            made.webhook.url = unicode(self.webhook, "the webhook")
        return made


@dataclass(frozen=True, slots=True)
class Watch:
    """Which calls a monitor watches besides those that name it; one that fits all that is set.

    - `named_only`: only calls that name it, in `generate(monitors=...)`.
    - `end_users`: only calls for these, at most 64.
    - `share`: only this share of calls, chosen at random, in (0, 1].

    Raises `InvalidRequest`.
    """

    named_only: bool = False
    end_users: Sequence[str] = ()
    share: float | None = None

    def __post_init__(self) -> None:
        users = tuple(several(self.end_users))
        if not all(isinstance(each, str) and each for each in users):
            raise InvalidRequest(
                f"the end users are {described(self.end_users)}; give texts, as in "
                "end_users=['user-7']",
                reason="FIELD_INVALID",
            )
        if self.share is not None and not 0 < finite(self.share, "share") <= 1:
            raise InvalidRequest(
                f"the share is {self.share}; it must be above 0 and at most 1",
                reason="FIELD_INVALID",
            )
        object.__setattr__(self, "end_users", users)

    def to_proto(self) -> pb.MonitorWatch:
        """The choice as the contract writes it."""
        return pb.MonitorWatch(
            named_only=bool(self.named_only), end_users=self.end_users, share=self.share
        )


class MonitorChanges(TypedDict, total=False):
    """What of a monitor may be changed; each is replaced as a whole."""

    probe: Probe | Sequence[Probe] | ProbeNetwork
    """What gives a number for each token."""
    aggregator: AggregatorLike | None
    """How the numbers become a score; None is the newest."""
    positions: Positions | None
    """Which tokens count; None is all."""
    lower: Level | None
    """The lower level; None takes it away."""
    upper: Level | None
    """The upper level; None takes it away."""
    watch: Watch | None
    """Which calls it watches; None is all."""
    labels: Mapping[str, str] | None
    """What it is, for people; None is nothing."""
    paused: bool
    """Whether it watches nothing for now."""


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level of a stored monitor."""

    threshold: float
    """The threshold."""
    action: str
    """What becomes of a sample: "stop", "intervene", "pause" or nothing."""
    interventions: int
    """Of "intervene": how many."""
    time_limit: float | None
    """Seconds that a "pause" may last; None for as long as the server allows."""
    proceed_after: bool
    """Of "pause": whether the sample goes on after that."""
    flag: bool
    """Whether the call is told."""
    explain: str | None
    """The id of the NLA that explains, empty for the only one; None if none does."""
    webhook: str
    """The address that the alert is sent to; empty if there is none."""

    def __str__(self) -> str:
        limit = "" if self.time_limit is None else f"={self.time_limit:g}"
        also = [
            *([f"{self.action}{limit}"] if self.action else []),
            *(["proceed"] if self.proceed_after else []),
            *(["flag"] if self.flag else []),
            *([] if self.explain is None else ["explain"]),
            *(["webhook"] if self.webhook else []),
        ]
        return ", ".join([f"{self.threshold:.6g}", *also])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Monitor(Shown):
    """A stored monitor, as a server describes it. Of its probe the shape is told, and not the
    numbers."""

    name: str
    """Of the form models/{model}/monitors/{id}."""
    kind: str
    """What its probe is: "linear", "mlp", "attention" or "mlp, attention"; empty while it is
    fitted."""
    sites: tuple[str, ...]
    """The canonical names of the sites that it reads."""
    aggregator: Aggregator
    """How numbers become a score."""
    positions: str
    """Which tokens count, in a few words."""
    lower: StoredLevel | None
    """The lower level; None if there is none."""
    upper: StoredLevel | None
    """The upper level; None if there is none."""
    watch: Watch
    """Which calls it watches besides those that name it."""
    labels: Mapping[str, str]
    """What it is, for people."""
    paused: bool
    """Whether it watches nothing for now."""
    fit: FitReport | None
    """How it was fitted and how well it does; None unless `fit` has made it."""
    model_path: str
    """The checkpoint that it was stored for, as `Model.path` was then."""
    create_time: datetime
    """When it was stored, in UTC."""
    update_time: datetime
    """When it was updated last, in UTC."""
    etag: str
    """Changes whenever it does; opaque."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return short(self.name)

    @property
    def report(self) -> FitReport:
        """Its `fit`. Raises `ValueError` of a monitor that was not fitted."""
        if self.fit is None:
            raise ValueError(f"{self.id} was stored as it was given, and not fitted")
        return self.fit

    def to_json(self) -> dict[str, Any]:
        """What is known of it as plain lists, numbers and strings.

        json.dumps(client.monitors.get("toxicity").to_json())
        """
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        told |= {
            "aggregator": str(self.aggregator),
            "create_time": self.create_time.isoformat(),
            "update_time": self.update_time.isoformat(),
        }
        found: dict[str, Any] = plain(told)
        return found

    def __repr__(self) -> str:
        where = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites"
        levels = " and ".join(f"{each.threshold:.4g}" for each in self.levels)
        paused = ", paused" if self.paused else ""
        return f"Monitor({self.id!r}, {self.kind} at {where}, above {levels}{paused})"

    @property
    def levels(self) -> tuple[StoredLevel, ...]:
        """Those that it has, the lower first."""
        return tuple(each for each in (self.lower, self.upper) if each)


@dataclass(frozen=True, slots=True, eq=False)
class MonitorScore:
    """What a monitor scored in a sample, or in a prompt that was replayed."""

    monitor: str
    """The id of the monitor."""
    tokens: int
    """Tokens that counted. If none did, the scores are None."""
    score: float | None
    """The score as of the last of them."""
    highest: float | None
    """The highest score at any of them."""
    highest_position: int | None
    """The position of the first token that had it."""
    level: str
    """The highest level that it came above, "lower" or "upper"; empty if none."""
    positions: NDArray[np.int64] | None = None
    """The positions of the tokens that counted, ascending. Shape [tokens]. None unless asked for,
    as the scores."""
    scores: Float32Array | None = None
    """The score as of each of them. Shape [tokens]."""


def detail_to_proto(detail: Any) -> generation_service_pb2.ScoreDetail:
    """Which scores to tell, as the contract writes it; None is none. Raises `InvalidRequest`."""
    if detail is None:
        return generation_service_pb2.SCORE_DETAIL_UNSPECIFIED
    if not isinstance(detail, str) or detail not in _DETAILS:
        raise InvalidRequest(
            f"scores is {described(detail)}; use 'sample', 'token' or None",
            reason="FIELD_INVALID",
            path=("scores",),
        )
    return _DETAILS[detail]


def level_of_monitor(level: Any, what: str) -> pb.MonitorLevel | None:
    """A level as the contract writes it; None stands for no level. Raises `InvalidRequest`."""
    if level is None:
        return None
    if not isinstance(level, Level):
        raise InvalidRequest(
            f"{what} is {described(level)}; give a level, as in Level(0.9, Stop())",
            reason="FIELD_INVALID",
            path=(what,),
        )
    return level.to_proto()


def monitor_from_proto(monitor: pb.Monitor) -> Monitor:
    """A monitor as the contract describes it."""
    network = monitor.network
    read = [*network.sites] if monitor.HasField("network") else [p.site for p in monitor.probes]
    kinds = [
        name
        for name, has in (("mlp", "hidden"), ("attention", "queries"))
        if monitor.HasField("network") and network.HasField(has)
    ]
    watch = monitor.watch
    return Monitor(
        name=monitor.name,
        kind=", ".join(kinds) or ("linear" if read else ""),
        sites=tuple(map(site_name, read)),
        aggregator=aggregator_from_proto(monitor.aggregator),
        positions=_positions_told(monitor.positions) if monitor.HasField("positions") else "all",
        lower=_level(monitor.lower) if monitor.HasField("lower") else None,
        upper=_level(monitor.upper) if monitor.HasField("upper") else None,
        watch=Watch(
            watch.named_only,
            tuple(watch.end_users),
            float(f"{watch.share:.7g}") if watch.HasField("share") else None,
        ),
        labels=dict(monitor.labels),
        paused=monitor.paused,
        fit=report_from_proto(monitor.fit, short(monitor.name))
        if monitor.HasField("fit")
        else None,
        model_path=monitor.model_path,
        create_time=time_from_proto(monitor.create_time),
        update_time=time_from_proto(monitor.update_time),
        etag=monitor.etag,
    )


def score_from_proto(score: generation_service_pb2.MonitorScore) -> MonitorScore:
    """A score as the contract writes it. Raises `BadResponse` where it does not fit together."""
    known = bool(score.tokens)
    scores = decode(score.token_scores) if score.HasField("token_scores") else None
    if scores is not None and scores.shape != (len(score.positions),):
        raise BadResponse(
            f"the server sent scores of shape {list(scores.shape)} for {len(score.positions)} "
            f"tokens of {score.monitor}"
        )
    return MonitorScore(
        monitor=short(score.monitor),
        tokens=score.tokens,
        score=score.score if known else None,
        highest=score.highest_score if known else None,
        highest_position=score.highest_position if known else None,
        level=level_name(score.level),
        positions=None if scores is None else np.array(score.positions, np.int64),
        scores=scores,
    )


def _level(level: pb.MonitorLevel) -> StoredLevel:
    limit = level.pause.time_limit
    return StoredLevel(
        threshold=level.threshold,
        action=level.WhichOneof("action") or "",
        interventions=len(level.intervene.interventions),
        time_limit=limit.seconds + limit.nanos / 1e9
        if level.pause.HasField("time_limit")
        else None,
        proceed_after=level.pause.proceed_after,
        flag=level.flag,
        explain=short(level.explain.nla) if level.HasField("explain") else None,
        webhook=level.webhook.url,
    )


def _positions_told(positions: positions_pb2.PositionSelector) -> str:
    """Positions in a few words: the name of the four that have one, else what they are by."""
    kind = positions.WhichOneof("selection") or "all"
    if kind in ("all", "last", "prompt", "generated"):
        return kind
    return " ".join(str(getattr(positions, kind)).split()) or kind


def _no_action(action: object) -> InvalidRequest:
    return InvalidRequest(
        f"the action is {described(action)}; give Stop(), Pause() or what steers, such as "
        "Add('resid_post.10', vector, 2.0) or a list of interventions",
        reason="FIELD_INVALID",
        path=("action",),
    )
