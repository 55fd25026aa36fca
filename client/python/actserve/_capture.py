"""Captures: all that is read of each sequence of a call, and as which readouts of the contract.

The short arguments of a method are readouts without a name; `readouts` adds named ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actserve._checks import described, unicode
from actserve.attention import Attention, AttentionSummary
from actserve.errors import InvalidRequest
from actserve.kept import Keep
from actserve.positions import Positions
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.readouts import (
    Read,
    Readout,
    Reduction,
    check_kind,
    readout_to_proto,
)
from actserve.sites import SiteLike, parse_sites
from actserve.tensors import ElementType
from actserve.v1 import readout_pb2 as pb

_MAX_NAME_BYTES = 64


@dataclass(frozen=True)
class Asked:
    """One thing that is read."""

    name: str
    """As the caller calls it; empty for the short arguments."""
    readout: Readout


@dataclass(frozen=True)
class Capture:
    """What is read of each sequence, in order."""

    asked: tuple[Asked, ...] = ()

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
        readouts: Mapping[str, Readout] | None = None,
    ) -> "Capture":
        """The capture of a method's arguments. Raises `InvalidRequest`."""
        parsed = parse_sites(sites)
        check_kind(Predict, predictions, "predictions")
        several = _attention(attention)
        unnamed: list[Readout] = []
        if parsed:
            unnamed.append(
                Read(
                    sites=parsed,
                    positions=positions,
                    element_type=element_type,
                    projection=projection,
                    reduce=reduce,
                    keep=keep,
                )
            )
        else:
            everywhere = isinstance(positions, str) and positions == "all"
            _check_no_rows(
                projection=projection,
                reduce=reduce,
                keep=keep,
                positions=None if everywhere else positions,
            )
        if predictions is not None:
            unnamed.append(predictions)
        asked = [Asked("", each) for each in (*unnamed, *several)]
        return Capture((*asked, *_named(readouts)))

    def to_proto(self) -> list[pb.Readout]:
        """The readouts as the contract writes them, those of each that is asked for in order."""
        return [proto for each in self.asked for proto in readout_to_proto(each.readout, each.name)]


def _check_no_rows(**of_rows: Any) -> None:
    if asked := [name for name, value in of_rows.items() if value is not None]:
        raise InvalidRequest(
            f"{asked[0]} is about the rows of sites, but none is named; name at least one "
            "(predictions and attention have positions of their own)",
            reason="FIELD_REQUIRED",
        )


def _named(readouts: Any) -> list[Asked]:
    if readouts is None:
        return []
    if not isinstance(readouts, Mapping):
        raise InvalidRequest(
            f"readouts is of type {type(readouts).__name__}; give a dict, as in "
            "{'lens': Predict(top_k=5)}",
            reason="FIELD_INVALID",
        )
    for name, readout in readouts.items():
        if not isinstance(name, str) or not 0 < _bytes(name) <= _MAX_NAME_BYTES:
            raise InvalidRequest(
                f"{described(name)} is not the name of a readout; use a text of 1 to "
                f"{_MAX_NAME_BYTES} bytes",
                reason="FIELD_INVALID",
            )
        if not isinstance(readout, Readout):
            raise InvalidRequest(
                f"readout {name!r} is of type {type(readout).__name__}; give a Read, a Predict, "
                "an Attention, an AttentionSummary or a LogitAttribution",
                reason="FIELD_INVALID",
            )
    return [Asked(name, readout) for name, readout in readouts.items()]


def _bytes(name: str) -> int:
    return len(unicode(name, "the name of a readout", "readouts").encode())


def _attention(attention: Attention | Iterable[Attention]) -> tuple[Attention, ...]:
    if isinstance(attention, AttentionSummary):
        raise InvalidRequest(
            "attention is an AttentionSummary; give it a name, as in readouts={'heads': "
            "AttentionSummary()}",
            reason="FIELD_INVALID",
        )
    if not isinstance(attention, Attention | Iterable):
        raise InvalidRequest(
            f"attention is {described(attention)}; give Attention(...) or a list of them",
            reason="FIELD_INVALID",
        )
    several = (attention,) if isinstance(attention, Attention) else tuple(attention)
    asked: set[tuple[int, int]] = set()
    for each in several:
        if each is None:
            raise InvalidRequest(
                "an item of attention is None; give Attention(...)", reason="FIELD_INVALID"
            )
        check_kind(Attention, each, "an item of attention")
        for key in each.keys:
            if key in asked:  # Results are found by layer and head.
                raise InvalidRequest(
                    f"attention of layer {key[0]} head {key[1]} is asked for twice; ask once",
                    reason="HEAD_OUT_OF_RANGE",
                )
            asked.add(key)
    return several
