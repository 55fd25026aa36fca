"""Readouts from the wire: parsed once a call, then placed into each sequence."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Positions, Selection
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.forms import projection_form
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.plan import (
    AttentionReadout,
    AttentionSummaryReadout,
    KeepReadout,
    LogitAttributionReadout,
    Placed,
    Plan,
    Readout,
    RowReadout,
    SecondMoments,
    patterns_where_best,
    plan,
    projected_where_best,
)
from actserve_server.readouts.reductions import Reduction
from actserve_server.readouts.statistics import held_bytes
from actserve_server.rpc.requests import position_selectors, tensor_fields, vector_sources
from actserve_server.rpc.requests.attention_fields import attention, attention_summary
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.logit_attribution_fields import logit_attributions
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.prediction_fields import predictions
from actserve_server.rpc.requests.projection_fields import projection, send_top
from actserve_server.rpc.requests.site_fields import sites
from actserve_server.rpc.requests.vector_sources import Found, Sources

MAX_NAME_BYTES = 64
"""Of a readout's name, in UTF-8. It is told again in every answer."""

_KINDS = ", ".join(field.name for field in pb.Readout.DESCRIPTOR.oneofs_by_name["kind"].fields)

_REDUCTIONS = {
    pb.REDUCTION_UNSPECIFIED: None,
    pb.REDUCTION_LAST: Reduction.LAST,
    pb.REDUCTION_MEAN: Reduction.MEAN,
    pb.REDUCTION_MAX: Reduction.MAX,
}


_SECOND_MOMENTS = {
    pb.SECOND_MOMENTS_UNSPECIFIED: SecondMoments.DIAGONAL,
    pb.SECOND_MOMENTS_DIAGONAL: SecondMoments.DIAGONAL,
    pb.SECOND_MOMENTS_FULL: SecondMoments.FULL,
}

_RESULTS = {
    AttentionReadout: ("attention patterns", "fewer heads or queries, or a low top_k"),
    LogitAttributionReadout: ("logit attributions", "fewer targets, sites or positions"),
}
"""Readouts whose results may be larger than the rows they come of, and what to ask for instead."""

MAX_FULL_WIDTH = 2048
"""Of rows whose covariance matrix is told."""
MAX_STATISTICS_BYTES = 64 << 20
"""Of one call."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadoutRequest:
    """A readout before its positions are resolved."""

    readout: Readout
    name: str
    element_type: ElementType
    """Of rows as they are sent."""
    field: FieldPath
    """Of the message of its kind."""

    @property
    def positions_field(self) -> FieldPath:
        of_queries = isinstance(self.readout, AttentionReadout | AttentionSummaryReadout)
        return (*self.field, "queries" if of_queries else "positions")

    def started(self, info: ModelInfo) -> pb.ReadoutStarted:
        """What comes of it."""
        match self.readout:
            case RowReadout() as rows:
                return pb.ReadoutStarted(
                    name=self.name,
                    element_type=tensor_fields.WIRE_ELEMENT_TYPES[self.element_type],
                    widths=rows.widths(info),
                    heads=rows.heads(info),
                )
            case AttentionSummaryReadout(layers=layers):
                return pb.ReadoutStarted(name=self.name, layers=layers)
            case LogitAttributionReadout(directions=directions):
                constants = directions.constants.tolist()
                return pb.ReadoutStarted(name=self.name, target_constants=constants)
            case _:
                return pb.ReadoutStarted(name=self.name)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Readouts:
    """All that a call reads of each sequence."""

    requests: tuple[ReadoutRequest, ...]
    info: ModelInfo
    """What they were checked against."""

    def __getitem__(self, index: int) -> ReadoutRequest:
        return self.requests[index]

    def at(
        self,
        place: Place,
        instead: tuple[Positions, FieldPath] | None = None,
        only: Collection[int] = (),
    ) -> Plan:
        """What is read of one sequence; `instead` is where in place of each readout's own
        positions, with the field that says so, and `only` which readouts read, all when empty."""
        placed: list[Placed] = []
        for number, each in enumerate(self.requests):
            if only and number not in only:
                continue
            selector, field = instead or (each.readout.positions, each.positions_field)
            selection = position_selectors.selection(selector, place, field)
            placed.append(Placed(each.readout, selection, number))
        with place.named():
            for kind in _RESULTS:
                self._check_results(kind, placed, place)
        tokens = len(place.prompt.ids)
        best = patterns_where_best(placed, tokens, place.run_tokens, self.info)
        return plan(best, place.prompt.ids)

    def started(self, info: ModelInfo) -> list[pb.ReadoutStarted]:
        return [each.started(info) for each in self.requests]

    def check_statistics(self, labels: int, info: ModelInfo) -> int:
        """How many bytes the statistics of this many labels take. Raises CAPTURE_TOO_LARGE."""
        wanted = 0
        for each in self.requests:
            readout = each.readout
            if isinstance(readout, RowReadout) and readout.statistics is not None:
                full = readout.statistics is SecondMoments.FULL
                wanted += held_bytes(readout.widths(info), labels, full=full)
                if wanted > MAX_STATISTICS_BYTES:
                    raise ActserveError(
                        Reason.CAPTURE_TOO_LARGE,
                        f"statistics of {labels} labels would take {wanted} bytes up to here, but "
                        f"those of a call may take at most {MAX_STATISTICS_BYTES}; ask for fewer "
                        "sites or labels, or for the diagonal of second moments",
                        field=(*each.field, "statistics"),
                        metadata={"bytes": wanted, "limit": MAX_STATISTICS_BYTES},
                    )
        return wanted

    @property
    def counts_reduced(self) -> FieldPath | None:
        """The field of a readout that has both a reduction and statistics."""
        for each in self.requests:
            readout = each.readout
            if isinstance(readout, RowReadout) and readout.statistics and readout.reduction:
                return each.field
        return None

    def _check_results(
        self,
        kind: "type[AttentionReadout | LogitAttributionReadout]",
        placed: Sequence[Placed],
        place: Place,
    ) -> None:
        wanted = 0
        field: FieldPath = ()
        for each in placed:
            if isinstance(each.readout, kind):
                wanted += each.readout.result_bytes(each.selection, place.run_tokens)
                field = field or self.requests[each.number].field
        limit = self.info.limits.max_capture_bytes
        if wanted > limit:
            what, fewer = _RESULTS[kind]
            raise ActserveError(
                Reason.CAPTURE_TOO_LARGE,
                f"the {what} would take {wanted} bytes, but those of one sequence may take at most "
                f"{limit}; ask for {fewer}",
                field=field,
                metadata={"bytes": wanted, "limit": limit},
            )


async def readouts(
    wire: Sequence[pb.Readout], sources: Sources, engine: Engine, field: FieldPath
) -> Readouts:
    """What to read, with everything checked that does not depend on a sequence."""
    info, store = engine.info, sources.kept
    _check_count(len(wire), info, field)
    named = {
        at: source
        for index, item in enumerate(wire)
        for at, source in vector_sources.named(item, (*field, index))
    }
    kept = vector_sources.look_up(named, store)
    every = [((*field, index), item) for index, item in enumerate(wire)]
    dictionaries = await vector_sources.look_up_dictionaries(every, sources, info)
    rows = KeptCache(store.copies)
    found = Found(info=info, kept=kept, rows=rows, dictionaries=dictionaries)
    attributions = await logit_attributions(wire, engine, field)
    # In a thread: a projection may be tens of megabytes.
    requests = await off_loop(_parse, wire, store, found, attributions, field)
    _check_names(requests, field)
    return Readouts(requests=requests, info=info)


def positions_to_wire(read: Iterable[tuple[Placed, np.ndarray]]) -> list[pb.ReadoutPositions]:
    """Where each readout reads, in order; those of one selection share a list."""
    shared: dict[Selection, pb.ReadoutPositions] = {}
    for each, where in read:
        if each.selection not in shared:
            shared[each.selection] = pb.ReadoutPositions(positions=where.tolist())
        shared[each.selection].readout_indices.append(each.number)
    return list(shared.values())


def _check_count(count: int, info: ModelInfo, field: FieldPath) -> None:
    limit = info.limits.max_readouts
    if count > limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{count} readouts were sent, but a call may have at most {limit}; read several sites "
            "in one, or make several calls",
            field=field,
            metadata={"readouts": count, "limit": limit},
        )


def _check_names(requests: Sequence[ReadoutRequest], field: FieldPath) -> None:
    seen: dict[str, int] = {}
    for index, each in enumerate(requests):
        size = len(each.name.encode())
        if size > MAX_NAME_BYTES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the name of readout {index} has {size} bytes; use at most {MAX_NAME_BYTES}",
                field=(*field, index, "name"),
                metadata={"bytes": size, "limit": MAX_NAME_BYTES},
            )
        if each.name in seen:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"readouts {seen[each.name]} and {index} are both called {each.name!r}; give each "
                "a name of its own, or none",
                field=(*field, index, "name"),
            )
        if each.name:
            seen[each.name] = index


def _parse(
    wire: Sequence[pb.Readout],
    store: KeptStore,
    found: Found,
    attributions: Mapping[int, LogitAttributionReadout],
    field: FieldPath,
) -> tuple[ReadoutRequest, ...]:
    requests = [
        _readout(item, store, found, attributions.get(i), (*field, i))
        for i, item in enumerate(wire)
    ]
    best = projected_where_best((each.readout for each in requests), found.info)
    for readout in best:
        if isinstance(readout, RowReadout) and readout.derived is not None:
            projection_form(readout.derived)  # Hashes its vectors.
    return tuple(
        replace(each, readout=readout) for each, readout in zip(requests, best, strict=True)
    )


def _readout(
    wire: pb.Readout,
    store: KeptStore,
    found: Found,
    attribution: LogitAttributionReadout | None,
    field: FieldPath,
) -> ReadoutRequest:
    info, kind = found.info, wire.WhichOneof("kind")
    at, element_type = (*field, kind), ElementType.F32
    match kind:
        case "rows":
            readout = _rows(wire.rows, found, at)
            element_type = ElementType.F32 if readout.computed else info.element_type
            if wire.rows.element_type:
                element_type = tensor_fields.element_type(
                    wire.rows.element_type, (*at, "element_type")
                )
        case "predictions":
            readout = predictions(wire.predictions, info, at)
        case "attention":
            readout = attention(wire.attention, info, at)
        case "attention_summary":
            readout = attention_summary(wire.attention_summary, info, at)
        case "logit_attribution":
            assert attribution is not None  # They are looked up before.
            readout = attribution
        case "keep":
            readout = _keep(wire.keep, store, info, at)
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"the readout has no kind that this server knows; set one of {_KINDS}",
                field=field,
            )
    return ReadoutRequest(readout=readout, name=wire.name, element_type=element_type, field=at)


def _rows(wire: pb.RowReadout, found: Found, field: FieldPath) -> RowReadout:
    info = found.info
    where = sites(wire.sites, info, (*field, "sites"))
    projected, top = None, None
    if wire.HasField("projection"):
        projected = projection(wire.projection, where, found, (*field, "projection"))
        top = send_top(wire.projection, len(projected.directions), (*field, "projection"))
    return RowReadout(
        sites=where,
        positions=position_selectors.selector(wire, info, (*field, "positions")),
        projection=projected,
        send_top=top,
        reduction=_reduction(wire.reduction, (*field, "reduction")),
        statistics=_statistics(wire, where, info, field),
    )


def _statistics(
    wire: pb.RowReadout, where: Sequence[Site], info: ModelInfo, field: FieldPath
) -> SecondMoments | None:
    if not wire.HasField("statistics"):
        return None
    field = (*field, "statistics")
    if wire.projection.HasField("send_top"):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "rows of which only the largest elements are told have no statistics; leave "
            "projection.send_top unset, or statistics",
            field=field,
        )
    kind = wire.statistics.second_moments
    field = (*field, "second_moments")
    if kind not in _SECOND_MOMENTS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"second_moments {kind} is unknown; use DIAGONAL or FULL",
            field=field,
            metadata={"second_moments": kind},
        )
    if _SECOND_MOMENTS[kind] is SecondMoments.FULL:
        width = max(info.at(site).width for site in where)
        if wire.HasField("projection") or width > MAX_FULL_WIDTH:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"a covariance matrix is of rows as they are, at most {MAX_FULL_WIDTH} wide, and "
                f"these are {'projected' if wire.HasField('projection') else f'{width} wide'}; ask "
                "for the diagonal",
                field=field,
                metadata={"width": width, "limit": MAX_FULL_WIDTH},
            )
    return _SECOND_MOMENTS[kind]


def _keep(wire: pb.KeepReadout, store: KeptStore, info: ModelInfo, field: FieldPath) -> KeepReadout:
    ttl_s = wire.ttl.ToNanoseconds() / 1e9 if wire.HasField("ttl") else None
    try:
        ttl_s = store.check_ttl(ttl_s)
    except ActserveError as error:
        error.field = (*field, "ttl")
        raise
    return KeepReadout(
        sites=sites(wire.sites, info, (*field, "sites")),
        positions=position_selectors.selector(wire, info, (*field, "positions")),
        ttl_s=ttl_s,
    )


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
