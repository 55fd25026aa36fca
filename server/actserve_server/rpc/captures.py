"""Captures from the wire: parsed once a call, then placed into each sequence."""

from dataclasses import dataclass
from itertools import chain

from actserve.v1 import capture_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.plan import AttentionReadout, Placed, Plan, Readout, RowReadout
from actserve_server.readouts.reductions import Reduction
from actserve_server.rpc import positions, tensors
from actserve_server.rpc.attention import attention
from actserve_server.rpc.positions import Place
from actserve_server.rpc.predictions import predictions
from actserve_server.rpc.projections import projection, send_top
from actserve_server.rpc.sites import sites
from actserve_server.rpc.sources import Found

_REDUCTIONS = {
    pb.REDUCTION_UNSPECIFIED: None,
    pb.REDUCTION_LAST: Reduction.LAST,
    pb.REDUCTION_MEAN: Reduction.MEAN,
    pb.REDUCTION_MAX: Reduction.MAX,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CaptureRequest:
    """A capture before its positions are resolved."""

    rows: RowReadout | None
    others: tuple[tuple[Readout, FieldPath], ...]
    """Predictions and attention, each with the field of its positions."""
    element_type: ElementType
    """Of rows."""
    ttl_s: float | None
    """For how long to keep rows that are kept; None for the server's default."""
    max_bytes: int
    """Of the attention patterns of a sequence."""
    field: FieldPath

    @property
    def sites(self) -> tuple[Site, ...]:
        """Whose rows are read."""
        return self.rows.sites if self.rows else ()

    def at(self, place: Place) -> Plan:
        rows = ((self.rows, (*self.field, "positions")),) if self.rows else ()
        plan = tuple(
            Placed(readout, positions.selection(readout.positions, place, field))
            for readout, field in chain(rows, self.others)
        )
        with place.named():
            self._check_attention(plan, place)
        return plan

    def check_averaged(self) -> None:
        """Raises unless each sequence gives one whole row a site, which labels need."""
        if self.rows is None or self.rows.reduction is None:
            missing = "sites" if self.rows is None else "reduction"
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"labels ask for means of the reduced rows of prompts, and {missing} is not set; "
                "set it, or send no labels",
                field=(*self.field, missing),
            )
        if self.rows.send_top is not None:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "the mean over the prompts of a label has no few largest elements in common with "
                "them; leave send_top unset, or send no labels",
                field=(*self.field, "projection", "send_top"),
            )

    def _check_attention(self, plan: Plan, place: Place) -> None:
        wanted = sum(
            placed.readout.result_bytes(placed.selection, place.run_tokens)
            for placed in plan
            if isinstance(placed.readout, AttentionReadout)
        )
        if wanted > self.max_bytes:
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"the attention patterns would take {wanted} bytes, but those of one sequence may "
                f"take at most {self.max_bytes}; ask for fewer heads or queries, or a low top_k",
                field=(*self.field, "attention"),
                metadata={"bytes": wanted, "limit": self.max_bytes},
            )


NOTHING = CaptureRequest(
    rows=None,
    others=(),
    element_type=ElementType.F32,
    ttl_s=None,
    max_bytes=0,
    field=("capture",),
)
"""The capture of a call without one."""


def capture(wire: pb.CaptureSpec, found: Found, field: FieldPath) -> CaptureRequest:
    """What to read, with everything checked that does not depend on a sequence."""
    info = found.info
    others: list[tuple[Readout, FieldPath]] = []
    if wire.HasField("predictions"):
        at = (*field, "predictions")
        others.append((predictions(wire.predictions, info, at), (*at, "positions")))
    for index, item in enumerate(wire.attention):
        at = (*field, "attention", index)
        others.append((attention(item, index, info, at), (*at, "queries")))
    rows = _rows(wire, found, field) if wire.sites or not others else None
    if rows is None:
        _refuse_without_sites(wire, field)
    element_type = ElementType.F32 if rows and rows.computed else info.element_type
    if wire.element_type:
        element_type = tensors.element_type(wire.element_type, (*field, "element_type"))
    return CaptureRequest(
        rows=rows,
        others=tuple(others),
        element_type=element_type,
        ttl_s=wire.keep.ttl.ToNanoseconds() / 1e9 if wire.keep.HasField("ttl") else None,
        max_bytes=info.limits.max_capture_bytes,
        field=field,
    )


def _rows(wire: pb.CaptureSpec, found: Found, field: FieldPath) -> RowReadout:
    info = found.info
    where = sites(wire.sites, info, (*field, "sites"))
    projected, top = None, None
    if wire.HasField("projection"):
        projected = projection(wire.projection, where, found, (*field, "projection"))
        top = send_top(wire.projection, len(projected.directions), (*field, "projection"))
    readout = RowReadout(
        sites=where,
        positions=positions.selector(wire, info, (*field, "positions")),
        projection=projected,
        send_top=top,
        reduction=_reduction(wire.reduction, (*field, "reduction")),
        keep=wire.HasField("keep"),
        send=not wire.keep.send_nothing,
    )
    if readout.computed and not readout.send:
        name = "reduction" if readout.projection is None else "projection"
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"keep.send_nothing is set, and rows are kept as the model computed them, so nothing "
            f"would come of the {name}; leave out one of the two",
            field=(*field, name),
        )
    return readout


def _reduction(wire: int, field: FieldPath) -> Reduction | None:
    if wire not in _REDUCTIONS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"reduction {wire} is unknown; use one of "
            f"{', '.join(item.upper() for item in Reduction)}",
            field=field,
            metadata={"reduction": wire},
        )
    return _REDUCTIONS[wire]  # pyright: ignore[reportArgumentType]


def _refuse_without_sites(wire: pb.CaptureSpec, field: FieldPath) -> None:
    for name in ("projection", "reduction", "keep", "positions"):
        if wire.reduction if name == "reduction" else wire.HasField(name):
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"{name} is about the rows of sites, which names none; name at "
                f"least one, or leave {name} unset",
                field=(*field, "sites"),
            )
