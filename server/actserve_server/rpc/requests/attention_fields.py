"""Attention patterns, and summaries of them, from the wire."""

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import AllPositions, Positions
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.readouts.plan import AttentionReadout, AttentionSummaryReadout
from actserve_server.rpc.requests import position_selectors
from actserve_server.rpc.requests.heads import check_heads
from actserve_server.rpc.requests.required_fields import required

MAX_OFFSETS = 64
"""Of one summary."""
MAX_TOP_KEYS = 64
"""Of one summary. With as many offsets, a layer of 800 heads still fits into a message."""


def attention(wire: pb.AttentionReadout, info: ModelInfo, field: FieldPath) -> AttentionReadout:
    """The patterns of a layer."""
    _check_served(info, field)
    wanted = required(wire, "layer", "the layer whose attention to read", field)
    layer = _layer(wanted, info, (*field, "layer"))
    chosen = tuple(wire.heads)
    if not chosen:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "no head is named; name at least one",
            field=(*field, "heads"),
        )
    check_heads(chosen, info.attention[layer].heads, f"layer {layer}", (*field, "heads"))
    return AttentionReadout(
        layer=layer,
        heads=chosen,
        positions=_queries(wire, info, field),
        top_k=_top_k(wire, info, (*field, "top_k")),
    )


def attention_summary(
    wire: pb.AttentionSummaryReadout, info: ModelInfo, field: FieldPath
) -> AttentionSummaryReadout:
    """A summary of the patterns of some layers."""
    _check_served(info, field)
    if wire.top_keys > MAX_TOP_KEYS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"top_keys is {wire.top_keys}; it must be 0 to {MAX_TOP_KEYS}",
            field=(*field, "top_keys"),
            metadata={"top_keys": wire.top_keys, "limit": MAX_TOP_KEYS},
        )
    return AttentionSummaryReadout(
        layers=_layers(wire, info, (*field, "layers")),
        positions=_queries(wire, info, field),
        offsets=_offsets(wire, info, (*field, "offsets")),
        top_keys=wire.top_keys,
    )


def _check_served(info: ModelInfo, field: FieldPath) -> None:
    if info.attention_unserved:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"attention patterns are not served for {info.id}: {info.attention_unserved}",
            field=field,
            metadata={"model": info.id},
        )


def _layer(wire: int, info: ModelInfo, field: FieldPath) -> int:
    """A layer whose queries and keys are served, counted from the first."""
    for hook_point in (HookPoint.Q, HookPoint.K):
        site = info.check_site(Site(hook_point, wire), field)
    assert site.layer is not None
    return site.layer


def _layers(wire: pb.AttentionSummaryReadout, info: ModelInfo, field: FieldPath) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for index, each in enumerate(wire.layers or range(info.layer_count)):
        at = (*field, index) if wire.layers else field
        layer = _layer(each, info, at)
        if layer in found:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"layer {layer} is named twice, as layers {found[layer]} and {index} of the list; "
                "name it once",
                field=at,
                metadata={"layer": layer},
            )
        found[layer] = index
    return tuple(found)


def _offsets(
    wire: pb.AttentionSummaryReadout, info: ModelInfo, field: FieldPath
) -> tuple[int, ...]:
    offsets = tuple(wire.offsets)
    if len(offsets) > MAX_OFFSETS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(offsets)} offsets were sent, but a summary may have at most {MAX_OFFSETS}; send "
            "fewer, or several summaries",
            field=field,
            metadata={"offsets": len(offsets), "limit": MAX_OFFSETS},
        )
    limit = info.limits.max_sequence_tokens - 1
    for index, offset in enumerate(offsets):
        if offset > limit:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"offset {offset} is out of range; no key is more than {limit} tokens before its "
                "query",
                field=(*field, index),
                metadata={"offset": offset, "limit": limit},
            )
        if offset in offsets[:index]:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"offset {offset} is listed twice; list it once",
                field=(*field, index),
                metadata={"offset": offset},
            )
    return offsets


def _queries(
    wire: pb.AttentionReadout | pb.AttentionSummaryReadout, info: ModelInfo, field: FieldPath
) -> Positions:
    if not wire.HasField("queries"):
        return AllPositions()
    return position_selectors.parse(wire.queries, info, (*field, "queries"))


def _top_k(wire: pb.AttentionReadout, info: ModelInfo, field: FieldPath) -> int | None:
    if not wire.HasField("top_k"):
        return None
    limit = info.limits.max_sequence_tokens
    if not 1 <= wire.top_k <= limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"top_k is {wire.top_k}; it must be 1 to {limit}, the most keys of a query, or unset "
            "for all",
            field=field,
            metadata={"top_k": wire.top_k, "limit": limit},
        )
    return wire.top_k
