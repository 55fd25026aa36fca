"""Interventions from the wire, parsed once a call and then placed into each sequence."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from weakref import WeakKeyDictionary

import numpy as np

from actserve.v1 import intervention_pb2
from actserve_server.domain.conditions import Condition
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Operation, Replace
from actserve_server.domain.positions import Positions, Selection
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import Site
from actserve_server.engine import forms
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    condition_fields,
    dose_limit,
    explanation_edits,
    intervention_operations,
    position_selectors,
    vector_sources,
)
from actserve_server.rpc.requests.heads import check_heads, row_shape
from actserve_server.rpc.requests.intervention_operations import Part
from actserve_server.rpc.requests.kept_rows import Earlier, KeptCache
from actserve_server.rpc.requests.named_dictionaries import Dictionaries
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.site_fields import sites
from actserve_server.rpc.requests.vector_sources import Found, Sources, Target
from actserve_server.rpc.transport.call_changes import Change
from actserve_server.rpc.transport.calls import current_call
from actserve_server.steering.stored_vectors import LoadedVector


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InterventionRequest:
    """An intervention before its positions are resolved."""

    parts: tuple[Part, ...]
    when: Condition | None = None
    """One for all parts, so that they are decided together."""
    positions: Positions
    allow_unused: bool
    dose_factor: float | None = None
    """What its coefficient or bounds were multiplied by, where they were more than is allowed."""
    row_each: FieldPath | None
    """The field of its rows, where it replaces with one of its own for every position."""
    field: FieldPath

    @property
    def kind(self) -> str:
        """The name of its operation."""
        return type(self.parts[0].operation).__name__.lower()

    @property
    def change(self) -> Change:
        """As the audit log tells it."""
        told = [_told(part.operation) for part in self.parts]
        return Change(
            sites=tuple(str(site) for part in self.parts for site in part.sites),
            operation=self.kind,
            vectors=tuple({each: None for vectors, _ in told for each in vectors}),
            numbers=tuple({each: None for _, numbers in told for each in numbers}),
            heads=tuple({head: None for part in self.parts for head in part.heads}),
            conditional=self.when is not None,
        )

    def at(self, place: Place) -> tuple[Intervention, ...]:
        """The interventions of a run, one a part."""
        selection = position_selectors.selection(
            self.positions,
            place,
            (*self.field, "positions"),
            may_be_empty=self.allow_unused,
            fix="; or set allow_unused",
        )
        if self.row_each is not None:
            with place.named():
                self._check_row_each(selection, place, self.row_each)
        return self.made(selection)

    def made(self, selection: Selection) -> tuple[Intervention, ...]:
        """The same at these positions."""
        return tuple(
            Intervention(
                part.sites,
                selection,
                part.operation,
                part.heads,
                allow_unused=self.allow_unused,
                when=self.when,
            )
            for part in self.parts
        )

    def scaled(self, factor: float) -> "InterventionRequest":
        """The same with its coefficient or its bounds multiplied."""
        return replace(
            self,
            parts=tuple(
                replace(part, operation=dose_limit.scaled(part.operation, factor))
                for part in self.parts
            ),
            dose_factor=factor * (1.0 if self.dose_factor is None else self.dose_factor),
        )

    def _check_row_each(self, selection: Selection, place: Place, field: FieldPath) -> None:
        operation = self.parts[0].operation
        assert isinstance(operation, Replace)
        rows = len(operation.rows)
        count = selection.spans.count(place.run_tokens)
        generates = place.run_tokens > len(place.prompt.ids)
        open_ended = any(end > place.run_tokens for _, end in selection.spans.ranges)
        if generates and (open_ended or selection.token_ids is not None):
            raise ActserveError(
                Reason.TENSOR_SIZE_MISMATCH,
                f"there are {rows} rows, one for each position, but how many positions will be "
                "selected is not known before the tokens are generated; select positions with an "
                "end, such as the prompt's, or give one row of shape [width] for all",
                field=field,
                metadata={"rows": rows},
            )
        # An empty selection has passed as allowed, and uses no row.
        if count not in (rows, 0):
            raise ActserveError(
                Reason.TENSOR_SIZE_MISMATCH,
                f"there are {rows} rows, but {count} positions are selected; give a row for each, "
                "or one of shape [width] for all",
                field=field,
                metadata={"rows": rows, "positions": count},
            )


async def interventions(
    wire: Sequence[intervention_pb2.Intervention],
    sources: Sources,
    autoencoders: Nlas,
    info: ModelInfo,
    field: FieldPath,
    earlier: Earlier | None = None,
    rows: KeptCache | None = None,
    vectors: Mapping[str, LoadedVector] | None = None,
    dictionaries: Dictionaries | None = None,
    limits_dose: bool = True,
) -> tuple[InterventionRequest, ...]:
    """What to change, in order, with the rows and vectors that this server has or makes for it.
    `earlier` names what earlier items of the call have kept, and `rows` are the kept rows that it
    already uses, if it has items. `vectors` and `dictionaries` are the stored ones, if they are
    looked up already.
    Without `limits_dose` the caller calls `limited` once they are as they will be."""
    check_count(len(wire), info, field)
    named = {
        at: source
        for index, item in enumerate(wire)
        for at, source in vector_sources.named(item, (*field, index))
    }
    kept = vector_sources.look_up(named, sources.kept, earlier)
    if vectors is None:
        vectors = await vector_sources.look_up_vectors(named, sources, info)
    if dictionaries is None:
        every = [((*field, index), item) for index, item in enumerate(wire)]
        dictionaries = await vector_sources.look_up_dictionaries(every, sources, info)
    edits = await explanation_edits.vectors(wire, autoencoders, info, field)
    found = Found(
        info=info,
        kept=kept,
        vectors=vectors,
        dictionaries=dictionaries,
        edits=edits,
        rows=rows or KeptCache(sources.kept.copies),
    )
    # In a thread: whether thousands of directions are independent takes seconds to find out, and
    # large vectors take as long to hash.
    made = await off_loop(parsed, wire, found, field, limits_dose)
    if (changes := current_call().changes) is not None:
        for each in made:
            changes.receipt(each.change)
    return made


def limited(
    edits: Sequence[InterventionRequest], info: ModelInfo
) -> tuple[InterventionRequest, ...]:
    """The interventions of one sequence, scaled down to the dose that the server allows if it does
    that. Raises DOSE_TOO_LARGE if it does not. To be called in a thread, and again where those of a
    call and of an item come together."""
    factors = dose_limit.dose_factors(
        [edit.parts for edit in edits], [edit.field for edit in edits], info
    )
    return _hashed(
        tuple(
            edit if factor is None else edit.scaled(factor)
            for edit, factor in zip(edits, factors, strict=True)
        )
    )


def placed(edits: Sequence[InterventionRequest], place: Place) -> tuple[Intervention, ...]:
    """The interventions of a run."""
    return tuple(made for edit in edits for made in edit.at(place))


def check_count(count: int, info: ModelInfo, field: FieldPath) -> None:
    """Raises TOO_MANY_INTERVENTIONS for more than one run may have."""
    limit = info.limits.max_interventions
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_INTERVENTIONS,
            f"{count} interventions were sent, but a call may have at most {limit}; add up "
            "vectors that go to the same sites and positions",
            field=field,
            metadata={"interventions": count, "limit": limit},
        )


def parsed(
    wire: Sequence[intervention_pb2.Intervention],
    found: Found,
    field: FieldPath,
    limits_dose: bool,
) -> tuple[InterventionRequest, ...]:
    """What to change, in order, with all that it names found already. To be called in a thread."""
    made = tuple(_intervention(item, found, (*field, index)) for index, item in enumerate(wire))
    return limited(made, found.info) if limits_dose else _hashed(made)


def _hashed(edits: tuple[InterventionRequest, ...]) -> tuple[InterventionRequest, ...]:
    """The same, with the vectors of each hashed: large ones take long."""
    is_audited = current_call().changes is not None
    for edit in edits:
        for part in edit.parts:
            forms.form_of(part.operation)
            if is_audited:
                _told(part.operation)
    return edits


_Told = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, float], ...]]
_TOLD: "WeakKeyDictionary[Operation, _Told]" = WeakKeyDictionary()


def _told(operation: Operation) -> _Told:
    """What the audit log tells of an operation: digests of its vectors, and its numbers. Made once;
    to be made in a thread first."""
    if (told := _TOLD.get(operation)) is None:
        values = {each.name: getattr(operation, each.name) for each in fields(operation)}
        vectors = tuple(
            (name, hashlib.sha256(np.ascontiguousarray(value, "<f4").tobytes()).hexdigest())
            for name, value in values.items()
            if isinstance(value, np.ndarray)
        )
        numbers = tuple(
            (name, value) for name, value in values.items() if isinstance(value, (int, float))
        )
        told = _TOLD[operation] = vectors, numbers
    return told


def _intervention(
    wire: intervention_pb2.Intervention, found: Found, field: FieldPath
) -> InterventionRequest:
    info = found.info
    where = sites(wire.sites, info, (*field, "sites"))
    for index, site in enumerate(where):
        info.check_changeable(site, (*field, "sites", index))
    chosen = tuple(wire.heads)
    _check_heads(where, chosen, info, (*field, "heads"))
    _check_alike(where, chosen, info, (*field, "sites"))
    parts = tuple(
        Part(
            at,
            intervention_operations.operation(wire, _target(at, heads, info), found, field),
            heads,
        )
        for at, heads in _parts(wire, where, chosen, found)
    )
    return InterventionRequest(
        parts=parts,
        when=condition_fields.condition(wire, where, found, field),
        positions=position_selectors.selector(wire, info, (*field, "positions")),
        allow_unused=wire.allow_unused,
        row_each=_row_each(wire, parts[0].operation, (*field, "replace", "rows")),
        field=field,
    )


def _parts(
    wire: intervention_pb2.Intervention,
    where: tuple[Site, ...],
    heads: tuple[int, ...],
    found: Found,
) -> list[tuple[tuple[Site, ...], tuple[int, ...]]]:
    """Sites and heads that one operation fits: each site by itself where it takes rows of its own,
    and each head where it takes its own part of kept rows."""
    every = [source for at, source in vector_sources.named(wire, ()) if at[0] != "when"]
    apart = any(vector_sources.takes_own_rows(each, found) for each in every)
    # What a transcoder writes differs from site to site.
    apart = apart or wire.HasField("features")
    groups = [(site,) for site in where] if apart else [where]
    of_kept = any(source.WhichOneof("source") == "kept" for source in every)
    by_head = [(head,) for head in heads] if of_kept and heads else [heads]
    return [(group, part) for group in groups for part in by_head]


def _row_each(
    wire: intervention_pb2.Intervention, operation: Operation, field: FieldPath
) -> FieldPath | None:
    if not isinstance(operation, Replace) or vector_sources.is_one_row(wire.replace.rows):
        return None
    kind = wire.replace.rows.WhichOneof("source")
    if kind == "kept" and len(operation.rows) == 1:
        return None
    return (*field, kind)


def _target(where: tuple[Site, ...], heads: tuple[int, ...], info: ModelInfo) -> Target:
    """What the operation works on, the same at all these sites and heads."""
    here = info.at(where[0])
    return Target(
        sites=where,
        head=heads[0] if heads else None,
        width=here.width // here.heads if heads else here.width,
        name=f"a head of {where[0]}" if heads else f"a row of {where[0]}",
    )


def _check_heads(
    where: tuple[Site, ...], heads: tuple[int, ...], info: ModelInfo, field: FieldPath
) -> None:
    for site in where if heads else ():
        count = info.at(site).heads
        if not count:
            having = [hook for hook, hook_info in info.hook_points.items() if hook_info.heads]
            raise ActserveError(
                Reason.HEAD_OUT_OF_RANGE,
                f"{site} has no heads; leave heads empty, or change {', '.join(having)}",
                field=field,
                metadata={"site": site},
            )
        check_heads(heads, count, str(site), field)


def _check_alike(
    where: tuple[Site, ...], heads: tuple[int, ...], info: ModelInfo, field: FieldPath
) -> None:
    """Raises unless one tensor fits all sites."""
    for index, site in enumerate(where):
        shape, first = (row_shape(each, info, heads=bool(heads)) for each in (site, where[0]))
        if shape != first:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{where[0]} is {first}, but {site} is {shape}; send an intervention for each "
                "width",
                field=(*field, index),
            )
