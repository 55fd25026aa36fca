"""Monitor requests: what is asked of the service of monitors.

A request that makes something has an id of its own, which stays when the call is made again: what
the first attempt made is not made twice.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actserve._checks import described, finite, integer, unicode
from actserve._names import Named, named
from actserve._vector_requests import checked_labels
from actserve.aggregators import Aggregator, aggregator, of_probe
from actserve.alerts import level_to_proto, time_to_proto
from actserve.errors import InvalidRequest
from actserve.fit_examples import Example, examples_of, prompts_as
from actserve.monitor_fits import method_to_proto
from actserve.monitors import MONITORS, Watch, level_of_monitor
from actserve.positions import positions_to_proto
from actserve.probe_networks import ProbeNetwork
from actserve.probes import Probe
from actserve.sites import plain_sites
from actserve.v1 import monitor_service_pb2 as pb

CHANGEABLE = (
    "probe",
    "aggregator",
    "positions",
    "lower",
    "upper",
    "watch",
    "labels",
    "paused",
)
"""What of a monitor may be given and changed."""


def monitors_named(monitors: Any) -> tuple[Named, ...]:
    """One monitor or several. Raises `InvalidRequest`."""
    if isinstance(monitors, str | Named) or not isinstance(monitors, Iterable):
        monitors = () if monitors is None else (monitors,)
    return tuple(named(MONITORS, each) for each in monitors)


def monitor_id(name: Any) -> str:
    """The id of a monitor to make. Raises `InvalidRequest` for the name of one in a model."""
    found = named(MONITORS, name)
    if not found.is_short:
        raise InvalidRequest(
            f"{described(name)} is the name of a monitor of some model; give the id alone, such as "
            "'toxicity'",
            reason="FIELD_INVALID",
            path=("name",),
        )
    return found.name


def create(model: str, name: Any, given: Mapping[str, Any]) -> pb.CreateMonitorRequest:
    """`given` has some of `CHANGEABLE`, resolved."""
    monitor, _ = _monitor(given)
    return pb.CreateMonitorRequest(
        model=model,
        monitor_id=monitor_id(name),
        monitor=monitor,
        request_id=uuid.uuid4().hex,
    )


def update(name: str, given: Mapping[str, Any], etag: str | None) -> pb.UpdateMonitorRequest:
    """`given` has some of `CHANGEABLE`, resolved; what it lacks stays."""
    if not given:
        raise InvalidRequest(
            f"nothing is changed; give one of {', '.join(CHANGEABLE)}", reason="FIELD_REQUIRED"
        )
    monitor, paths = _monitor(given)
    monitor.name, monitor.etag = name, etag or ""
    request = pb.UpdateMonitorRequest(monitor=monitor)
    request.update_mask.paths.extend(paths)
    return request


def _monitor(given: Mapping[str, Any]) -> tuple[pb.Monitor, list[str]]:
    """The monitor that is given, and the names of its fields that are."""
    if unknown := [each for each in given if each not in CHANGEABLE]:
        raise InvalidRequest(
            f"a monitor has no {', '.join(unknown)}; it has {', '.join(CHANGEABLE)}",
            reason="FIELD_INVALID",
        )
    monitor, paths = pb.Monitor(), list[str]()
    combined: Aggregator | None = None
    if "probe" in given:
        combined = _probe(given["probe"], monitor)
        paths += ["probes", "network"]
    if given.get("aggregator") is not None:
        if combined is not None:
            raise InvalidRequest(
                "the probe has a smoothing or reduction of its own and there is an aggregator; "
                "leave out one of the two",
                reason="FIELD_INVALID",
                path=("aggregator",),
            )
        combined = aggregator(given["aggregator"])
    if "aggregator" in given or combined is not None:
        paths.append("aggregator")
        if combined is not None:
            monitor.aggregator.CopyFrom(combined.to_proto())
    for name in ("lower", "upper"):
        if name in given:
            paths.append(name)
            if level := level_of_monitor(given[name], name):
                getattr(monitor, name).CopyFrom(level)
    if "positions" in given:
        paths.append("positions")
        if given["positions"] is not None:
            monitor.positions.CopyFrom(positions_to_proto(given["positions"]))
    if "watch" in given:
        paths.append("watch")
        if given["watch"] is not None:
            monitor.watch.CopyFrom(_checked(given["watch"], Watch, "watch").to_proto())
    if "labels" in given:
        paths.append("labels")
        monitor.labels.update(checked_labels(given["labels"]))
    if "paused" in given:
        paths.append("paused")
        monitor.paused = bool(given["paused"])
    return monitor, paths


def _probe(probe: Any, monitor: pb.Monitor) -> Aggregator | None:
    """Sets the probe, and returns what it says itself of how its numbers become a score."""
    if isinstance(probe, ProbeNetwork):
        monitor.network.CopyFrom(probe.to_proto())
        return None
    probes = [probe] if isinstance(probe, Probe) else probe
    if not isinstance(probes, Sequence) or not probes or isinstance(probes, str):
        raise _no_probe(probe)
    own: list[Aggregator] = []
    for each in probes:
        if not isinstance(each, Probe):
            raise _no_probe(each)
        if found := of_probe(each):
            own.append(found)
        monitor.probes.append(each.to_proto())
    if own and len(probes) > 1:
        raise InvalidRequest(
            "one of several probes has a smoothing or reduction of its own, but their numbers are "
            "added before; give the aggregator of the monitor instead",
            reason="FIELD_INVALID",
            path=("probe",),
        )
    return own[0] if own else None


def fit(
    model: str,
    name: Any,
    given: Mapping[str, Any],
    *,
    positive: Any,
    negative: Any,
    examples: Any,
    benign: Any,
    longer: Any,
) -> pb.FitMonitorRequest:
    """`given` has the other fields, resolved."""
    request = pb.FitMonitorRequest(
        model=model,
        monitor_id=monitor_id(name),
        examples=_protos(_examples(positive, negative, examples)),
        benign_examples=_protos(prompts_as(benign, "benign", positive=False)),
        longer_examples=_protos(examples_of(longer, "longer")),
        sites=[site.to_proto() for site in plain_sites(given["sites"])],
        all_sites=bool(given["all_sites"]),
        method=method_to_proto(given["method"]),
        hidden_units=_count(given["hidden_units"], "hidden_units"),
        heads=_count(given["heads"], "heads"),
        lower_false_positives=_share(given["lower_false_positives"], "lower_false_positives"),
        upper_false_positives=_share(given["upper_false_positives"], "upper_false_positives"),
        labels=checked_labels(given["labels"]),
        request_id=uuid.uuid4().hex,
    )
    if given["aggregator"] is not None:
        request.aggregator.CopyFrom(aggregator(given["aggregator"]).to_proto())
    if given["positions"] is not None:
        request.positions.CopyFrom(positions_to_proto(given["positions"]))
    return request


def _examples(positive: Any, negative: Any, examples: Any) -> list[Example]:
    if (examples is None) == (positive is None and negative is None):
        raise InvalidRequest(
            "give either examples, or positive and negative ones",
            reason="FIELD_REQUIRED",
            path=("examples",),
        )
    if examples is not None:
        return examples_of(examples, "examples")
    return [
        *prompts_as(() if positive is None else positive, "positive", positive=True),
        *prompts_as(() if negative is None else negative, "negative", positive=False),
    ]


def _protos(examples: Iterable[Example]) -> list[pb.FitExample]:
    return [each.to_proto() for each in examples]


def checked_end_user(end_user: Any) -> str:
    """For whom a call is made, as the caller knows them; None is nobody. Raises
    `InvalidRequest`."""
    if end_user is None:
        return ""
    if not isinstance(end_user, str) or not end_user:
        raise InvalidRequest(
            f"the end user is {described(end_user)}; give a text, such as an id of yours",
            reason="FIELD_INVALID",
            path=("end_user",),
        )
    return unicode(end_user, "the end user")


def alert_filter(
    monitors: tuple[Named, ...],
    level: Any,
    end_user: Any,
    *,
    undecided: bool = False,
    before: Any = None,
) -> pb.AlertFilter:
    """Which alerts; `monitors` are named whole. Raises `InvalidRequest`."""
    return pb.AlertFilter(
        monitors=[each.name for each in monitors],
        level=level_to_proto(level),
        end_user=checked_end_user(end_user),
        undecided=bool(undecided),
        before_time=None if before is None else time_to_proto(before, "before"),
    )


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidRequest(
            f"{name} is {described(value)}; give a {kind.__name__}",
            reason="FIELD_INVALID",
            path=(name,),
        )
    return value


def _count(number: Any, name: str) -> int:
    """A number of units or heads; None is the server's default."""
    return 0 if number is None else integer(number, f"{name}", range(1, 1 << 16), "FIELD_INVALID")


def _share(share: Any, name: str) -> float | None:
    return None if share is None else finite(share, name)


def _no_probe(value: Any) -> InvalidRequest:
    return InvalidRequest(
        f"the probe is {described(value)}; give a Probe, a list of them at different sites, or a "
        "ProbeNetwork",
        reason="FIELD_INVALID",
        path=("probe",),
    )
