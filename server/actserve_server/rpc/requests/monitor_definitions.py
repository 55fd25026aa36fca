"""Monitors to be stored, from the wire: checked, with all that their sources name copied.

What is stored is the message as it was sent, without the data of tensors, and beside it the same
with a tensor for every source, of which the server makes again what it watches by.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from actserve.v1 import intervention_pb2, source_pb2, tensor_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.score_edges import score_edges, write_edges
from actserve_server.monitors.stored_monitors import Definition, StoredMonitor
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    alert_targets,
    explanation_edits,
    monitor_fields,
    network_fields,
    site_fields,
    steering_vector_fields,
    tensor_fields,
    vector_sources,
)
from actserve_server.rpc.requests.intervention_operations import Part
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.monitor_fields import LEVELS, MonitorRequest, monitor_request
from actserve_server.rpc.requests.vector_sources import Found, Sources, Target
from actserve_server.rpc.transport.messages import inside

FIELD = ("monitor",)
MAX_MESSAGE_BYTES = 64 << 10
"""Of a monitor without the data of its tensors, which the quota counts."""

REPLACED = frozenset(
    {
        "probes",
        "network",
        "aggregator",
        "positions",
        "lower",
        "upper",
        "paused",
        "watch",
        "labels",
    }
)
"""The fields of a monitor that a caller sets."""
_SCORED_BY = ("probes", "network", "aggregator", "positions")
"""Those that scores depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a monitor may name, besides what its tenant has."""

    info: ModelInfo
    nlas: Nlas
    webhooks: Collection[str]


async def created(wire: pb.Monitor, world: World, own: Sources) -> Definition:
    """A new monitor, as it is to be stored. Raises what is wrong with it."""
    for name in ("name", "etag"):
        if getattr(wire, name):
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name} of a new monitor is the server's to say; leave it unset",
                field=(*FIELD, name),
            )
    return await _defined(wire, None, REPLACED, world, own)


async def updated(
    stored: StoredMonitor, request: pb.UpdateMonitorRequest, world: World, own: Sources
) -> Definition:
    """A monitor with some of its fields replaced, or all. Raises what is wrong with it then."""
    paths = replaced(request)
    return await _defined(request.monitor, stored.definition, paths, world, own)


def replaced(request: pb.UpdateMonitorRequest) -> frozenset[str]:
    """The fields of a monitor that a request replaces. Raises FIELD_INVALID."""
    if not request.HasField("update_mask"):
        return REPLACED
    return _paths(request.update_mask)


def prepared(stored: StoredMonitor, info: ModelInfo, copies: KeptCache) -> MonitorRequest:
    """What a stored monitor watches by. Raises what this server does not serve of it. To be called
    in a thread."""
    wire = pb.Monitor.FromString(stored.definition.resolved)
    found = Found(info=info, kept={}, rows=copies)
    return monitor_request(wire, found, FIELD, stored.definition.parts)


def _paths(mask: FieldMask) -> frozenset[str]:
    if not mask.paths:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the mask has no path; name fields of the monitor, or leave it unset to replace all",
            field=("update_mask",),
        )
    for path in mask.paths:
        if path not in REPLACED:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{path[:100]!r} cannot be replaced; name some of {', '.join(sorted(REPLACED))}, "
                "each as a whole",
                field=("update_mask",),
            )
    return frozenset(mask.paths)


def _settable(wire: pb.Monitor, paths: Iterable[str]) -> pb.Monitor:
    """A monitor with these fields alone."""
    made = pb.Monitor()
    _put(made, wire, paths)
    return made


def _put(target: pb.Monitor, source: pb.Monitor, paths: Iterable[str]) -> None:
    """Replaces fields by those of another monitor, set or not."""
    chosen = pb.Monitor()
    chosen.CopyFrom(source)
    for field in pb.Monitor.DESCRIPTOR.fields:
        if field.name in paths:
            target.ClearField(field.name)  # type: ignore[arg-type]
        else:
            chosen.ClearField(field.name)  # type: ignore[arg-type]
    target.MergeFrom(chosen)


async def _defined(
    wire: pb.Monitor,
    before: Definition | None,
    paths: frozenset[str],
    world: World,
    own: Sources,
) -> Definition:
    """A monitor whose fields of these paths are those of a message, and whose others are as
    before."""
    # In a thread: it may be tens of megabytes.
    given = await off_loop(_settable, wire, paths)
    steering_vector_fields.labels(given.labels, (*FIELD, "labels"))
    named = dict(vector_sources.named(given, FIELD))
    # What kept rows are made of is looked up on the event loop, and all before anything is made.
    kept = vector_sources.look_up(named, own.kept)
    vectors = await vector_sources.look_up_vectors(named, own, world.info)
    dictionaries = await vector_sources.look_up_dictionaries([(FIELD, given)], own, world.info)
    edits = {}
    for level in LEVELS:
        if given.HasField(level):  # type: ignore[arg-type]
            of_level: pb.MonitorLevel = getattr(given, level)
            at = (*FIELD, level, "intervene", "interventions")
            edits |= await explanation_edits.vectors(
                of_level.intervene.interventions, world.nlas, world.info, at
            )
    found = Found(
        info=world.info,
        kept=kept,
        vectors=vectors,
        dictionaries=dictionaries,
        edits=edits,
        rows=KeptCache(own.kept.copies),
    )
    return await off_loop(_made, given, before, paths, world, found)


def _made(
    given: pb.Monitor,
    before: Definition | None,
    paths: frozenset[str],
    world: World,
    found: Found,
) -> Definition:
    whole, message = pb.Monitor(), pb.Monitor()
    if before is not None:
        whole.ParseFromString(before.resolved)
        message.ParseFromString(before.message)
    _put(whole, given, paths)
    _put(message, _without_data(given), paths)
    size = message.ByteSize()
    if size > MAX_MESSAGE_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the monitor takes {size} bytes besides the data of its tensors; use at most "
            f"{MAX_MESSAGE_BYTES}",
            field=FIELD,
            metadata={"bytes": size, "limit": MAX_MESSAGE_BYTES},
        )
    old_parts = {} if before is None else before.parts
    parts = {level: counts for level, counts in old_parts.items() if level not in paths}
    made = monitor_request(whole, found, FIELD, parts)
    monitor_fields.check_both_levels(made, world.info)
    alert_targets.check(given, made, world.nlas, world.info, world.webhooks)
    resolved, parts = _resolved(whole, made, found, parts)
    if before is None or paths.intersection(_SCORED_BY):
        scored_by = _digest(_settable(resolved, _SCORED_BY))
    else:
        scored_by = before.scored_by
    # Kept where thresholds alone have changed, so that what was counted can be compared.
    edges = before.edges if before is not None and before.scored_by == scored_by else None
    return Definition(
        message=message.SerializeToString(deterministic=True),
        resolved=resolved.SerializeToString(deterministic=True),
        parts=parts,
        edges=edges or write_edges(score_edges([each.threshold for each in made.levels])),
        scored_by=scored_by,
        size_bytes=_tensor_bytes(resolved),
        fit=b"" if before is None else before.fit,
    )


def _digest(wire: pb.Monitor) -> str:
    return hashlib.blake2b(wire.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def _without_data(wire: pb.Monitor) -> pb.Monitor:
    """The monitor, its tensors without their data."""
    made = pb.Monitor()
    made.CopyFrom(wire)
    for tensor in _tensors(made):
        tensor.ClearField("data")
    return made


def _tensors(message: Message) -> Iterable[tensor_pb2.Tensor]:
    for _, item in inside(message):
        if isinstance(item, tensor_pb2.Tensor):
            yield item
        else:
            yield from _tensors(item)


def _tensor_bytes(message: Message) -> int:
    return sum(len(each.data) for each in _tensors(message))


def _resolved(
    whole: pb.Monitor, made: MonitorRequest, found: Found, before: monitor_fields.Parts
) -> tuple[pb.Monitor, dict[str, list[int]]]:
    """The monitor with a tensor for every source, and how many interventions of it each one of the
    request is. Those of levels in `before` are that already."""
    resolved = pb.Monitor()
    resolved.CopyFrom(whole)
    if whole.probes:
        (row,) = made.network.values
        ends = np.cumsum([found.info.at(site).width for site in made.network.sites])
        for probe, direction in zip(resolved.probes, np.split(row, ends[:-1]), strict=True):
            probe.direction.tensor.CopyFrom(tensor_fields.to_wire(direction))
    else:
        resolved.network.CopyFrom(network_fields.to_wire(made.network))
    parts = {level: list(counts) for level, counts in before.items()}
    for level in made.levels:
        name = level.name.name.lower()
        if not isinstance(level.action, tuple) or name in before:
            continue
        wire = getattr(whole, name).intervene.interventions
        into = getattr(resolved, name).intervene.interventions
        del into[:]
        parts[name] = [len(each.parts) for each in level.action]
        for each, request in zip(wire, level.action, strict=True):
            into.extend(_part(each, request, part, found) for part in request.parts)
    return resolved, parts


def _part(
    wire: intervention_pb2.Intervention, request: InterventionRequest, part: Part, found: Found
) -> intervention_pb2.Intervention:
    """One part of an intervention, with a tensor for every source."""
    made = intervention_pb2.Intervention()
    made.CopyFrom(wire)
    del made.sites[:]
    made.sites.extend(map(site_fields.to_wire, part.sites))
    del made.heads[:]
    made.heads.extend(part.heads)
    target = _target(part, found.info)
    for at, source in vector_sources.named(made, request.field):
        kind = source.WhichOneof("source")
        if kind == "tensor":
            continue
        if at[len(request.field)] == "when":
            assert request.when is not None
            values = request.when.probe.direction
        elif isinstance(source, source_pb2.VectorSource):
            values = vector_sources.vector(source, target, found, at)
        else:
            values = vector_sources.matrix(source, target, found, at)
            if at[-2:] == ("replace", "rows"):
                (values,) = values  # One for all positions; `monitor_fields` took no others.
        source.tensor.CopyFrom(tensor_fields.to_wire(values))
    return made


def _target(part: Part, info: ModelInfo) -> Target:
    here = info.at(part.sites[0])
    return Target(
        sites=part.sites,
        head=part.heads[0] if part.heads else None,
        width=here.width // here.heads if part.heads else here.width,
        name=f"a row of {part.sites[0]}",
    )
