"""Sites, positions, captures and interventions from the wire.

A capture or an intervention is parsed once a call, and then placed: its positions become absolute
once a prompt's length is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actserve.v1 import capture_pb2, intervention_pb2, positions_pb2, site_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import (
    AllPositions,
    GeneratedPositions,
    LastPosition,
    PositionList,
    PositionRange,
    Positions,
    PromptPositions,
    Spans,
    resolve,
)
from actserve_server.domain.runs import Add, Capture
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.rpc import tensors

HOOK_POINTS = {
    site_pb2.HOOK_POINT_EMBEDDING: HookPoint.EMBEDDING,
    site_pb2.HOOK_POINT_RESID_PRE: HookPoint.RESID_PRE,
    site_pb2.HOOK_POINT_RESID_MID: HookPoint.RESID_MID,
    site_pb2.HOOK_POINT_RESID_POST: HookPoint.RESID_POST,
    site_pb2.HOOK_POINT_ATTN_OUT: HookPoint.ATTN_OUT,
    site_pb2.HOOK_POINT_MLP_OUT: HookPoint.MLP_OUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The sequence that positions are resolved in."""

    prompt_tokens: int
    run_tokens: int
    """Positions that can have activations in this request."""
    name: str = ""
    """The field of the prompt, where a call has several."""


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """A capture before its positions are resolved."""

    sites: tuple[Site, ...]
    positions: Positions
    element_type: ElementType

    def at(self, place: Place) -> Capture:
        return Capture(self.sites, _spans(self.positions, place, "capture.positions"))


@dataclass(frozen=True, slots=True, eq=False)
class AddRequest:
    """An addition before its positions are resolved."""

    site: Site
    positions: Positions
    vector: np.ndarray
    coefficient: float
    field: str

    def at(self, place: Place) -> Add:
        spans = _spans(self.positions, place, f"{self.field}.positions")
        return Add(self.site, spans, self.vector, self.coefficient)


def site(wire: site_pb2.Site, info: ModelInfo, field: str) -> Site:
    """A served site with an absolute layer."""
    hook_point = HOOK_POINTS.get(wire.hook_point)
    if hook_point is None:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"hook point {wire.hook_point} is not set or unknown; use one of "
            f"{', '.join(HookPoint)}",
            field=f"{field}.hook_point",
            metadata={"hook_point": wire.hook_point},
        )
    layer = wire.layer if wire.HasField("layer") else None
    return info.check_site(Site(hook_point, layer), field)


def positions(wire: positions_pb2.PositionSelector, field: str) -> Positions:
    """The selector of a message that is set."""
    match wire.WhichOneof("selection"):
        case "all":
            return AllPositions()
        case "last":
            return LastPosition()
        case "prompt":
            return PromptPositions()
        case "generated":
            return GeneratedPositions()
        case "list":
            return PositionList(tuple(wire.list.positions))
        case "range":
            span = wire.range
            return PositionRange(
                span.start if span.HasField("start") else None,
                span.end if span.HasField("end") else None,
            )
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"{field} has no selection this server knows; set all, last, list, range, prompt "
                "or generated, or leave the whole selector unset for all",
                field=field,
            )


def capture(wire: capture_pb2.CaptureSpec, info: ModelInfo, field: str) -> CaptureRequest:
    """What to capture, every site served and named once."""
    if not wire.sites:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the capture names no sites; name one", field=f"{field}.sites"
        )
    sites: list[Site] = []
    for index, item in enumerate(wire.sites):
        parsed = site(item, info, f"{field}.sites[{index}]")
        if parsed in sites:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{parsed} is captured twice, as sites {sites.index(parsed)} and {index}; name it "
                "once",
                field=f"{field}.sites[{index}]",
            )
        sites.append(parsed)
    kind = info.element_type
    if wire.element_type:
        kind = tensors.element_type(wire.element_type, f"{field}.element_type")
    return CaptureRequest(tuple(sites), _selector(wire, field), kind)


def interventions(
    wire: Sequence[intervention_pb2.Intervention], info: ModelInfo, field: str
) -> tuple[AddRequest, ...]:
    """What to change, in order."""
    limit = info.limits.max_interventions
    if len(wire) > limit:
        raise ActserveError(
            Reason.TOO_MANY_INTERVENTIONS,
            f"{len(wire)} interventions were sent, but a call may have at most {limit}; add up "
            "vectors that go to the same site and positions",
            field=field,
            metadata={"interventions": len(wire), "limit": limit},
        )
    return tuple(_intervention(item, info, f"{field}[{index}]") for index, item in enumerate(wire))


def _intervention(wire: intervention_pb2.Intervention, info: ModelInfo, field: str) -> AddRequest:
    if wire.WhichOneof("operation") != "add":
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"{field} has no operation this server knows; set add",
            field=field,
        )
    where = site(wire.site, info, f"{field}.site")
    if not wire.add.HasField("vector"):
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the addition has no vector", field=f"{field}.add.vector"
        )
    vector = tensors.vector(wire.add.vector, info.width, f"{field}.add.vector")
    coefficient = wire.add.coefficient if wire.add.HasField("coefficient") else 1.0
    if not math.isfinite(coefficient):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the coefficient is {coefficient}; it must be finite",
            field=f"{field}.add.coefficient",
        )
    with np.errstate(over="ignore"):
        product = convert(np.float32(coefficient) * vector, ElementType.F32, info.element_type)
    if not np.isfinite(to_float32(product, info.element_type)).all():
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"coefficient {coefficient:g} times the vector overflows {info.element_type}, in which "
            "this model computes; use a smaller one",
            field=f"{field}.add.coefficient",
        )
    return AddRequest(where, _selector(wire, field), vector, coefficient, field)


def _selector(
    wire: capture_pb2.CaptureSpec | intervention_pb2.Intervention, field: str
) -> Positions:
    if not wire.HasField("positions"):
        return AllPositions()
    return positions(wire.positions, f"{field}.positions")


def _spans(selector: Positions, place: Place, field: str) -> Spans:
    try:
        spans = resolve(selector, place.prompt_tokens, place.run_tokens, field)
        if spans.count(place.run_tokens) == 0:
            # Only `generated` gets here. An empty capture or an edit of nothing is a mistake that
            # a fluent answer would hide.
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                "the selector covers no position of this request: no generated token is run; "
                "generate at least 2 tokens",
                field=field,
                metadata={"prompt_tokens": place.prompt_tokens},
            )
    except ActserveError as error:
        if place.name:
            error.message = f"{place.name}: {error.message}"
            error.metadata["prompt"] = place.name
        raise
    return spans
