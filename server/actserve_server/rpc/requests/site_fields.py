"""Sites from the wire."""

from collections.abc import Sequence

from actserve.v1 import site_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint, Site

HOOK_POINTS = {site_pb2.HookPoint.Value(f"HOOK_POINT_{hook.name}"): hook for hook in HookPoint}
WIRE_HOOK_POINTS = {hook: wire for wire, hook in HOOK_POINTS.items()}


def site(wire: site_pb2.Site, info: ModelInfo, field: FieldPath) -> Site:
    """A served site with an absolute layer."""
    return info.check_site(_parse(wire, field), field)


def origin(wire: site_pb2.Site, info: ModelInfo, field: FieldPath) -> Site:
    """A site with an absolute layer where rows come from that the request brings along. It need
    not be served."""
    return _parse(wire, field).resolve(info.layer_count, field)


def to_wire(site: Site) -> site_pb2.Site:
    return site_pb2.Site(
        hook_point=WIRE_HOOK_POINTS[site.hook_point],  # pyright: ignore[reportArgumentType]
        layer=site.layer,
    )


def sites(wire: Sequence[site_pb2.Site], info: ModelInfo, field: FieldPath) -> tuple[Site, ...]:
    """Served sites with absolute layers, at least one and each named once."""
    if not wire:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "no site is named; name at least one", field=field
        )
    parsed: dict[Site, int] = {}
    for index, item in enumerate(wire):
        one = site(item, info, (*field, index))
        if one in parsed:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{one} is named twice, as sites {parsed[one]} and {index}; name it once",
                field=(*field, index),
            )
        parsed[one] = index
    return tuple(parsed)


def _parse(wire: site_pb2.Site, field: FieldPath) -> Site:
    hook_point = HOOK_POINTS.get(wire.hook_point)
    if hook_point is None:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"hook point {wire.hook_point} is not set or unknown; use one of "
            f"{', '.join(HookPoint)}",
            field=(*field, "hook_point"),
            metadata={"hook_point": wire.hook_point},
        )
    return Site(hook_point, wire.layer if wire.HasField("layer") else None)
