"""Captures: the arguments that say what is read, checked, and as the contract writes them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actserve.attention import Attention
from actserve.errors import InvalidRequest
from actserve.kept import Keep
from actserve.options import Reduction
from actserve.positions import Positions, positions_to_proto
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.sites import Site, SiteLike, parse_sites
from actserve.tensors import ElementType, element_type_to_proto
from actserve.v1 import capture_pb2 as pb

_REDUCTIONS: Mapping[str, pb.Reduction] = {
    "last": pb.REDUCTION_LAST,
    "mean": pb.REDUCTION_MEAN,
    "max": pb.REDUCTION_MAX,
}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What is read of each sequence."""

    sites: tuple[Site, ...]
    positions: Positions
    element_type: ElementType | None
    projection: Projection | None
    reduce: Reduction | None
    predictions: Predict | None
    attention: tuple[Attention, ...]
    keep: Keep | None

    @staticmethod
    def of(
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        positions: Positions = "all",
        element_type: ElementType | None = None,
        projection: Projection | None = None,
        reduce: Reduction | None = None,
        predictions: Predict | None = None,
        attention: Attention | Iterable[Attention] = (),
        keep: Keep | None = None,
    ) -> "Capture":
        """The capture of a method's arguments. Raises `InvalidRequest`."""
        capture = Capture(
            sites=parse_sites(sites),
            positions=positions,
            element_type=element_type,
            projection=_optional(Projection, projection, "projection"),
            reduce=reduce,
            predictions=_optional(Predict, predictions, "predictions"),
            attention=_attention(attention),
            keep=_optional(Keep, keep, "keep"),
        )
        everywhere = isinstance(positions, str) and positions == "all"
        of_rows = {
            "projection": projection,
            "reduce": reduce,
            "keep": keep,
            "positions": not everywhere,
        }
        if not capture.sites and (asked := [name for name, each in of_rows.items() if each]):
            raise InvalidRequest(
                f"{asked[0]} is about the rows of sites, but none is named; name at least one "
                "(predictions and attention have positions of their own)",
                reason="FIELD_REQUIRED",
            )
        return capture

    @property
    def reads_nothing(self) -> bool:
        return not (self.sites or self.predictions or self.attention)

    @property
    def sent_sites(self) -> tuple[Site, ...]:
        """The sites whose rows come back."""
        return () if self.keep and not self.keep.send else self.sites

    def to_proto(self) -> pb.CaptureSpec:
        return pb.CaptureSpec(
            sites=[site.to_proto() for site in self.sites],
            positions=positions_to_proto(self.positions) if self.sites else None,
            element_type=element_type_to_proto(self.element_type),
            projection=self.projection and self.projection.to_proto(),
            reduction=reduction_to_proto(self.reduce),
            predictions=self.predictions and self.predictions.to_proto(),
            attention=[each.to_proto() for each in self.attention],
            keep=self.keep and self.keep.to_proto(),
        )


def _optional(cls: type, value: Any, name: str) -> Any:
    return None if value is None else _of(cls, value, name)


def _of(cls: type, value: Any, name: str) -> Any:
    if not isinstance(value, cls):
        raise InvalidRequest(
            f"{name} is {value!r}; give {cls.__name__}(...)", reason="FIELD_INVALID"
        )
    return value


def _attention(attention: Attention | Iterable[Attention]) -> tuple[Attention, ...]:
    several = (attention,) if isinstance(attention, Attention) else tuple(attention)
    asked: set[tuple[int, int]] = set()
    for each in several:
        for key in _of(Attention, each, "an item of attention").keys:
            if key in asked:  # Results are found by layer and head.
                raise InvalidRequest(
                    f"attention of layer {key[0]} head {key[1]} is asked for twice; ask once",
                    reason="HEAD_OUT_OF_RANGE",
                )
            asked.add(key)
    return several


def reduction_to_proto(name: str | None) -> pb.Reduction:
    """The reduction of a name; None is none. Raises `InvalidRequest`."""
    if name is None:
        return pb.REDUCTION_UNSPECIFIED
    if name not in _REDUCTIONS:
        raise InvalidRequest(
            f"reduction {name!r} does not exist; use one of {', '.join(_REDUCTIONS)}",
            reason="FIELD_INVALID",
        )
    return _REDUCTIONS[name]
