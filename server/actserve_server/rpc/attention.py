"""Attention patterns from the wire."""

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import AllPositions
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.readouts.plan import AttentionReadout
from actserve_server.rpc import positions
from actserve_server.rpc.heads import check_heads


def attention(wire: pb.AttentionReadout, info: ModelInfo, field: FieldPath) -> AttentionReadout:
    """The patterns of a layer."""
    if info.attention_unserved:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"attention patterns are not served for {info.id}: {info.attention_unserved}",
            field=field,
            metadata={"model": info.id},
        )
    for hook_point in (HookPoint.Q, HookPoint.K):
        site = info.check_site(Site(hook_point, wire.layer), (*field, "layer"))
    assert site.layer is not None
    chosen = tuple(wire.heads)
    if not chosen:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "no head is named; name at least one",
            field=(*field, "heads"),
        )
    check_heads(chosen, info.attention[site.layer].heads, f"layer {site.layer}", (*field, "heads"))
    selector = AllPositions()
    if wire.HasField("queries"):
        selector = positions.parse(wire.queries, info, (*field, "queries"))
    return AttentionReadout(
        layer=site.layer,
        heads=chosen,
        positions=selector,
        top_k=_top_k(wire, info, (*field, "top_k")),
    )


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
