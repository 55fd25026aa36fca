"""The variants of a sweep: interventions, and the points of a grid that complete them.

An intervention is parsed once for each site of the grid, as any other is, with the coefficient that
is hardest to represent. What differs between points is then put in: coefficients and positions.
Vectors that are equal at several sites are held once, and those of all variants are bounded.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from actserve.v1 import intervention_pb2, site_pb2
from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Ablate, Add, Operation
from actserve_server.domain.positions import Positions
from actserve_server.engine import forms
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import adapter_fields, interventions, position_selectors
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.named_dictionaries import Dictionaries
from actserve_server.rpc.requests.site_fields import sites
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.steering.stored_vectors import LoadedVector
from actserve_server.steering.sweep_grid import MAX_CELLS, Axes, Cell

MAX_VARIANTS = 256
_SCALED = ("add", "ablate")
"""Operations that have a coefficient."""
_HASHED_BYTES = 1 << 18
"""Of vectors to scale: more take longer than the way to a thread and back."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Variant:
    """One that has been checked."""

    field: FieldPath
    edits: tuple[tuple[InterventionRequest, ...], ...]
    """For each site of the grid, or once. Coefficients that the grid has are one here."""
    coefficients: tuple[float, ...]
    positions: tuple[Positions, ...]
    adapter: str
    """The id of the LoRA adapter that its cells run with, if any."""

    async def at(self, cell: Cell, info: ModelInfo) -> tuple[InterventionRequest, ...]:
        """The interventions of a cell. Raises DOSE_TOO_LARGE for a coefficient of the grid."""
        edits = self.edits[cell.site or 0]
        if cell.position is not None:
            edits = tuple(replace(each, positions=self.positions[cell.position]) for each in edits)
        if cell.coefficient is None:
            return edits
        coefficient = self.coefficients[cell.coefficient]
        if _vector_bytes(edits) > _HASHED_BYTES:
            return await off_loop(_allowed, edits, coefficient, info)
        return _allowed(edits, coefficient, info)

    @contextmanager
    def as_sent(self, cell: Cell) -> Iterator[None]:
        """Makes errors name the fields of the grid where these are to blame."""
        try:
            yield
        except ActserveError as error:
            error.field = _as_sent(
                error.field, self.field, cell.coefficient, cell.site, cell.position
            )
            raise


class Held:
    """The operations of a sweep, equal ones once, with vectors of at most so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._operations: dict[tuple[object, ...], Operation] = {}

    def once(self, operation: Operation, field: FieldPath) -> Operation:
        """The first operation that is equal to this one. Raises TOO_MANY_ROWS."""
        form = forms.form_of(operation)
        key = type(operation), *form.key
        if key not in self._operations:
            self._bytes += form.nbytes
            if self._bytes > self._limit:
                raise ActserveError(
                    Reason.TOO_MANY_ROWS,
                    f"the interventions up to here, at every site, have vectors of {self._bytes} "
                    f"bytes as float32, but those of a sweep may take at most {self._limit}; sweep "
                    "fewer sites or variants in a call",
                    field=field,
                    metadata={"bytes": self._bytes, "limit": self._limit},
                )
        return self._operations.setdefault(key, operation)


def axes(wire: Sequence[pb.SweepVariant]) -> tuple[Axes, ...]:
    return tuple(Axes(len(x.coefficients), len(x.sites), len(x.positions)) for x in wire)


def check(wire: Sequence[pb.SweepVariant], field: FieldPath) -> None:
    """Raises unless there are variants, and no more than allowed."""
    if not 1 <= len(wire) <= MAX_VARIANTS:
        raise ActserveError(
            Reason.FIELD_INVALID if wire else Reason.FIELD_REQUIRED,
            f"{len(wire)} variants were sent; send from 1 to {MAX_VARIANTS}, of which one without "
            "interventions is the model as it is",
            field=field,
            metadata={"variants": len(wire), "limit": MAX_VARIANTS} if wire else None,
        )
    parsed = sum(len(each.interventions) * max(1, len(each.sites)) for each in wire)
    if parsed > MAX_CELLS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the variants have {parsed} interventions, each counted once for every site of its "
            f"grid, but may have at most {MAX_CELLS}; make several calls",
            field=field,
            metadata={"interventions": parsed, "limit": MAX_CELLS},
        )


def check_grids(wire: Sequence[pb.SweepVariant], field: FieldPath) -> None:
    """Raises unless grids fit their interventions. `check` has passed them, and so has
    `Grid.check`, or their lists might be of millions."""
    for index, each in enumerate(wire):
        _check_grid(each, (*field, index))


async def variants(
    wire: Sequence[pb.SweepVariant],
    sources: Sources,
    vectors: Mapping[str, LoadedVector],
    dictionaries: Dictionaries,
    autoencoders: Nlas,
    info: ModelInfo,
    field: FieldPath,
) -> tuple[Variant, ...]:
    """The variants, checked at every site and with the largest of their coefficients. `check` has
    passed them."""
    rows, held = KeptCache(sources.kept.copies), Held(info.vector_bytes)
    return tuple(
        [
            await _variant(
                each,
                sources,
                vectors,
                dictionaries,
                autoencoders,
                info,
                rows,
                held,
                (*field, index),
            )
            for index, each in enumerate(wire)
        ]
    )


def _check_grid(wire: pb.SweepVariant, field: FieldPath) -> None:
    lists = {"coefficients": wire.coefficients, "sites": wire.sites, "positions": wire.positions}
    for name in [name for name, values in lists.items() if values and not wire.interventions]:
        raise _invalid(
            f"the variant has no interventions that {name} could be for; leave them empty, or add "
            "interventions",
            (*field, name),
        )
    kinds = [each.WhichOneof("operation") for each in wire.interventions]
    if wire.coefficients and not any(kind in _SCALED for kind in kinds):
        raise _invalid(
            f"coefficients are of {' and '.join(_SCALED)}, and the variant has neither; leave them "
            "empty",
            (*field, "coefficients"),
        )
    for index, coefficient in enumerate(wire.coefficients):
        if not math.isfinite(coefficient):
            raise _invalid(
                f"the coefficient is {coefficient}; it must be finite",
                (*field, "coefficients", index),
            )
    for index, each in enumerate(wire.interventions):
        at = (*field, "interventions", index)
        kind = kinds[index]
        if wire.coefficients and kind in _SCALED and getattr(each, kind).HasField("coefficient"):
            raise _given_twice("coefficient", "coefficients", (*at, kind, "coefficient"))
        if wire.sites and each.sites:
            raise _given_twice("sites", "sites", (*at, "sites"))
        if wire.positions and each.HasField("positions"):
            raise _given_twice("positions", "positions", (*at, "positions"))


def _given_twice(name: str, grid: str, field: FieldPath) -> ActserveError:
    return _invalid(
        f"{name} is set, and the variant's {grid} would give it too; leave one of them unset", field
    )


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)


async def _variant(
    wire: pb.SweepVariant,
    sources: Sources,
    vectors: Mapping[str, LoadedVector],
    dictionaries: Dictionaries,
    autoencoders: Nlas,
    info: ModelInfo,
    rows: KeptCache,
    held: Held,
    field: FieldPath,
) -> Variant:
    coefficients = tuple(wire.coefficients)
    largest = max(range(len(coefficients)), key=lambda i: abs(coefficients[i]), default=None)
    if wire.sites:
        sites(wire.sites, info, (*field, "sites"))  # Each once.
    edits: list[tuple[InterventionRequest, ...]] = []
    for number in range(max(1, len(wire.sites))):
        site = number if wire.sites else None
        try:
            parsed = await interventions.interventions(
                _completed(wire, site, largest),
                sources,
                autoencoders,
                info,
                (*field, "interventions"),
                rows=rows,
                vectors=vectors,
                dictionaries=dictionaries,
                # Each coefficient of a grid by itself, once it is there.
                limits_dose=not coefficients,
            )
            edits.append(await off_loop(_held, parsed, bool(coefficients), held))
        except ActserveError as error:
            error.field = _as_sent(error.field, field, largest, site, None)
            raise
    return Variant(
        field=field,
        edits=tuple(edits),
        coefficients=coefficients,
        positions=tuple(
            position_selectors.parse(each, info, (*field, "positions", index))
            for index, each in enumerate(wire.positions)
        ),
        adapter=adapter_fields.adapter(wire.adapter, info, (*field, "adapter")),
    )


def _completed(
    wire: pb.SweepVariant, site: int | None, coefficient: int | None
) -> list[intervention_pb2.Intervention]:
    """The interventions with a site and a coefficient of the grid in them, where it has these."""
    completed: list[intervention_pb2.Intervention] = []
    for each in wire.interventions:
        one = intervention_pb2.Intervention()
        one.CopyFrom(each)
        if site is not None:
            one.sites.append(site_pb2.Site.FromString(wire.sites[site].SerializeToString()))
        if coefficient is not None and (kind := one.WhichOneof("operation")) in _SCALED:
            getattr(one, kind).coefficient = wire.coefficients[coefficient]
        completed.append(one)
    return completed


def _held(
    edits: Sequence[InterventionRequest], scaled: bool, held: Held
) -> tuple[InterventionRequest, ...]:
    """The same with every operation held once, and without the coefficients of the grid."""
    if scaled:
        edits = _scaled(edits, 1.0)
    return tuple(
        replace(
            each,
            parts=tuple(
                replace(part, operation=held.once(part.operation, each.field))
                for part in each.parts
            ),
        )
        for each in edits
    )


def _scaled(
    edits: Sequence[InterventionRequest], coefficient: float
) -> tuple[InterventionRequest, ...]:
    """The same with this coefficient wherever there is one."""
    return tuple(
        replace(
            each,
            parts=tuple(
                replace(part, operation=_with(part.operation, coefficient)) for part in each.parts
            ),
        )
        for each in edits
    )


def _allowed(
    edits: Sequence[InterventionRequest], coefficient: float, info: ModelInfo
) -> tuple[InterventionRequest, ...]:
    return interventions.limited(_scaled(edits, coefficient), info)


def _with(operation: Operation, coefficient: float) -> Operation:
    if not isinstance(operation, Add | Ablate):
        return operation
    scaled = replace(operation, coefficient=coefficient)
    forms.form_of(scaled)  # Hashes its vector.
    return scaled


def _vector_bytes(edits: Sequence[InterventionRequest]) -> int:
    """Of those that a coefficient scales."""
    return sum(
        forms.form_of(part.operation).vectors.nbytes
        for each in edits
        for part in each.parts
        if isinstance(part.operation, Add | Ablate)
    )


def _as_sent(
    field: FieldPath,
    variant: FieldPath,
    coefficient: int | None,
    site: int | None,
    position: int | None,
) -> FieldPath:
    """The field of the request that is to blame, where one of an intervention is that the grid
    gave."""
    size = len(variant)
    if field[:size] != variant:
        return field
    match field[size:]:
        case ("interventions", int(), "sites", *rest) if site is not None:
            return (*variant, "sites", site, *rest[1:])
        case ("interventions", int(), "positions", *rest) if position is not None:
            return (*variant, "positions", position, *rest)
        case ("interventions", int(), str(kind), "coefficient") if (
            coefficient is not None and kind in _SCALED
        ):
            return (*variant, "coefficients", coefficient)
    return field
