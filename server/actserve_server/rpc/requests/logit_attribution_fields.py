"""Logit attributions from the wire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Positions
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import LogitTarget
from actserve_server.engine.api import Engine
from actserve_server.readouts.plan import LogitAttributionReadout
from actserve_server.rpc.requests import position_selectors
from actserve_server.rpc.requests.required_fields import required
from actserve_server.rpc.requests.site_fields import sites

MAX_TARGETS = 64
"""Of one readout. As many results of a head take no more than its row does in most models."""
MAX_DIRECTION_BYTES = 64 << 20
"""Of one call: targets as the stream and the heads see them."""

ATTRIBUTABLE = (
    HookPoint.EMBEDDING,
    HookPoint.RESID_PRE,
    HookPoint.RESID_MID,
    HookPoint.RESID_POST,
    HookPoint.ATTN_OUT,
    HookPoint.MLP_OUT,
    HookPoint.Z,
)
"""The stream, and what is added to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A readout before the engine has said what its targets look like."""

    sites: tuple[Site, ...]
    targets: tuple[LogitTarget, ...]
    last: Site
    positions: Positions

    @property
    def layers(self) -> tuple[int, ...]:
        """Those whose heads are told."""
        return tuple(
            site.layer for site in self.sites if _of_heads(site) and site.layer is not None
        )

    def direction_bytes(self, info: ModelInfo) -> int:
        seen = info.width + len(self.layers) * info.hook_points[HookPoint.Z].width
        return 4 * len(self.targets) * seen

    async def readout(self, engine: Engine) -> LogitAttributionReadout:
        return LogitAttributionReadout(
            sites=self.sites,
            directions=await engine.logit_directions(self.targets, self.layers),
            last=self.last,
            positions=self.positions,
        )


async def logit_attributions(
    wire: Sequence[pb.Readout], engine: Engine, field: FieldPath
) -> Mapping[int, LogitAttributionReadout]:
    """The readouts of this kind among all of a call, by index. The engine is asked once all of them
    have passed every check."""
    info, wanted = engine.info, 0
    asked: dict[int, _Asked] = {}
    for index, each in enumerate(wire):
        if each.WhichOneof("kind") == "logit_attribution":
            at = (*field, index, "logit_attribution")
            asked[index] = _parse(each.logit_attribution, info, at)
            wanted += asked[index].direction_bytes(info)
            _check_size(wanted, at)
    return {index: await each.readout(engine) for index, each in asked.items()}


def _parse(wire: pb.LogitAttributionReadout, info: ModelInfo, field: FieldPath) -> _Asked:
    _check_served(info.weights.attribution_unserved, "logit attribution is", info, field)
    return _Asked(
        sites=_sites(wire, info, (*field, "sites")),
        targets=_targets(wire.targets, info, (*field, "targets")),
        last=info.check_site(Site(HookPoint.RESID_POST, -1), field),
        positions=position_selectors.selector(wire, info, (*field, "positions")),
    )


def _of_heads(site: Site) -> bool:
    return site.hook_point is HookPoint.Z


def _check_served(reason: str, what: str, info: ModelInfo, field: FieldPath) -> None:
    if reason:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"{what} not served for {info.id}: {reason}",
            field=field,
            metadata={"model": info.id},
        )


def _sites(wire: pb.LogitAttributionReadout, info: ModelInfo, field: FieldPath) -> tuple[Site, ...]:
    where = sites(wire.sites, info, field)
    for index, site in enumerate(where):
        if site.hook_point not in ATTRIBUTABLE:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{site} is no part of the residual stream, so it adds to no logit by itself; use "
                f"one of {', '.join(ATTRIBUTABLE)}",
                field=(*field, index),
                metadata={"site": site},
            )
        if _of_heads(site):
            reason = info.weights.head_attribution_unserved
            _check_served(reason, "logit attribution of z is", info, (*field, index))
    return where


def _targets(
    wire: Sequence[pb.LogitTarget], info: ModelInfo, field: FieldPath
) -> tuple[LogitTarget, ...]:
    if not wire:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "no logit is named; name at least one", field=field
        )
    if len(wire) > MAX_TARGETS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(wire)} targets are named; name at most {MAX_TARGETS}, or several readouts",
            field=field,
            metadata={"targets": len(wire), "limit": MAX_TARGETS},
        )
    return tuple(_target(each, info, (*field, index)) for index, each in enumerate(wire))


def _target(wire: pb.LogitTarget, info: ModelInfo, field: FieldPath) -> LogitTarget:
    plus = required(wire, "token_id", "the token whose logit it is", field)
    minus = wire.minus_token_id if wire.HasField("minus_token_id") else None
    for name, token in (("token_id", plus), ("minus_token_id", minus)):
        if token is not None and token >= info.vocabulary_size:
            raise ActserveError(
                Reason.TOKEN_OUT_OF_RANGE,
                f"token id {token} is out of range; {info.id} has ids 0 to "
                f"{info.vocabulary_size - 1}",
                field=(*field, name),
                metadata={"token_id": token, "vocabulary_size": info.vocabulary_size},
            )
    if minus == plus:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the logit of token {minus} less itself is zero; name another token, or none",
            field=(*field, "minus_token_id"),
            metadata={"token_id": minus},
        )
    return LogitTarget(plus, minus)


def _check_size(wanted: int, field: FieldPath) -> None:
    if wanted > MAX_DIRECTION_BYTES:
        raise ActserveError(
            Reason.CAPTURE_TOO_LARGE,
            f"the targets, seen from the stream and from the heads, take {wanted} bytes up to "
            f"here, but those of a call may take at most {MAX_DIRECTION_BYTES}; name fewer "
            "targets, or z of fewer layers",
            field=field,
            metadata={"bytes": wanted, "limit": MAX_DIRECTION_BYTES},
        )
