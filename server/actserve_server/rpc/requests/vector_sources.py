"""Where the vectors and matrices of a request come from.

A request says of each whether it holds it, or names what the server has or computes. What is named
is found first, on the event loop; then every source becomes an array by the same two functions,
whatever it was, and is checked as if it had been sent along.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from google.protobuf.message import Message

from actserve.v1 import source_pb2 as pb
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.readouts.kept import Kept, KeptStore
from actserve_server.rpc import not_served
from actserve_server.rpc.requests import (
    kept_rows,
    named_dictionaries,
    stored_vector_rows,
    tensor_fields,
)
from actserve_server.rpc.requests.kept_rows import Earlier, KeptCache, KeptKey
from actserve_server.rpc.requests.named_dictionaries import Dictionaries
from actserve_server.rpc.transport.messages import inside
from actserve_server.steering.registry import VectorRegistry
from actserve_server.steering.stored_vectors import LoadedVector

Source = pb.VectorSource | pb.MatrixSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a tenant's requests can name."""

    kept: KeptStore
    vectors: VectorRegistry
    dictionaries: DictionaryRegistry
    tenant: str = ""

    def of(self, tenant: str) -> "Sources":
        """What another tenant's can."""
        return replace(self, kept=self.kept.of(tenant), tenant=tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a vector works on: a row of some sites, or the part of a row that one head has."""

    sites: tuple[Site, ...]
    head: int | None = None
    width: int
    name: str
    """For messages, such as "a row of resid_post.3"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the sources of a call name, apart from its tensors."""

    info: ModelInfo
    kept: Mapping[KeptKey, Kept]
    rows: KeptCache
    vectors: Mapping[str, LoadedVector] = field(default_factory=dict)
    """Stored ones, by the name by which a source names them."""
    dictionaries: Dictionaries = field(default_factory=dict)
    """By the name by which a source, a projection or an operation names them."""
    edits: Mapping[FieldPath, np.ndarray] = field(default_factory=dict)
    """The vectors of edited explanations, by the field of their source."""


def named(message: Message, field: FieldPath) -> Iterator[tuple[FieldPath, Source]]:
    """Every source in a message, with its field."""
    for at, item in inside(message, field):
        if isinstance(item, pb.VectorSource | pb.MatrixSource):
            yield at, item
        else:
            yield from named(item, at)


def look_up(
    every: Mapping[FieldPath, Source], store: KeptStore, earlier: Earlier | None = None
) -> Mapping[KeptKey, Kept]:
    """The kept activations that sources name. `earlier` names what earlier items of the call have
    kept, if it has any. To be called on the event loop's thread."""
    return {
        kept_rows.key(source.kept): kept_rows.look_up(source.kept, store, (*at, "kept"), earlier)
        for at, source in every.items()
        if source.WhichOneof("source") == "kept"
    }


async def look_up_vectors(
    every: Mapping[FieldPath, Source], sources: Sources, info: ModelInfo
) -> Mapping[str, LoadedVector]:
    """The stored vectors that sources name."""
    names = {
        (*at, "steering_vector"): source.steering_vector
        for at, source in every.items()
        if isinstance(source, pb.VectorSource) and source.HasField("steering_vector")
    }
    return await stored_vector_rows.look_up(names, sources.vectors, sources.tenant, info)


async def look_up_dictionaries(
    every: Iterable[tuple[FieldPath, Message]], sources: Sources, info: ModelInfo
) -> Dictionaries:
    """The dictionaries that messages name, each with its field."""
    names = {
        at: name
        for field, message in every
        for at, name in named_dictionaries.named(message, field)
    }
    return await named_dictionaries.look_up(names, sources.dictionaries, sources.tenant, info)


def is_one_row(wire: pb.MatrixSource) -> bool:
    """Whether it holds one row of shape [width], to stand for all."""
    return wire.WhichOneof("source") == "tensor" and len(wire.tensor.shape) != 2


def takes_own_rows(source: Source, found: Found) -> bool:
    """Whether each site takes a row of its own, of what was kept or of a stored vector."""
    if isinstance(source, pb.VectorSource) and source.HasField("steering_vector"):
        return len(found.vectors[source.steering_vector].stored.rows) > 1
    return source.WhichOneof("source") == "kept" and not source.kept.HasField("site")


def vector(wire: pb.VectorSource, target: Target, found: Found, field: FieldPath) -> np.ndarray:
    """The vector, float32 [width], every element finite."""
    match wire.WhichOneof("source"):
        case "tensor":
            return tensor_fields.vector(wire.tensor, target.width, target.name, (*field, "tensor"))
        case "kept":
            rows = _kept(wire.kept, target, found, (*field, "kept"))
            if len(rows) != 1:
                raise ActserveError(
                    Reason.TENSOR_SIZE_MISMATCH,
                    f"a vector is one row, but {len(rows)} were kept; name one of their positions",
                    field=(*field, "kept", "positions"),
                    metadata={"rows": len(rows)},
                )
            return rows[0]
        case "steering_vector":
            return stored_vector_rows.row(
                found.vectors[wire.steering_vector],
                target.sites[0],
                target.width,
                target.name,
                head=target.head is not None,
                field=(*field, "steering_vector"),
            )
        case "edit":
            _check_edit_fits(found.edits[field], target, (*field, "edit"))
            return found.edits[field]
        case "feature":
            of, at = found.dictionaries[wire.feature.dictionary], (*field, "feature")
            return named_dictionaries.direction(wire.feature, of, target.width, target.name, at)
        case _:
            raise _no_source(wire, f"[{target.width}]", field)


def matrix(wire: pb.MatrixSource, target: Target, found: Found, field: FieldPath) -> np.ndarray:
    """The rows of a matrix, float32 [rows, width], at least one and every element finite."""
    match wire.WhichOneof("source"):
        case "tensor":
            return tensor_fields.matrix(wire.tensor, target.width, target.name, (*field, "tensor"))
        case "kept":
            return _kept(wire.kept, target, found, (*field, "kept"))
        case "dictionary":
            of, at = found.dictionaries[wire.dictionary.dictionary], (*field, "dictionary")
            return named_dictionaries.directions(wire.dictionary, of, target.width, target.name, at)
        case _:
            raise _no_source(wire, f"[n, {target.width}]", field)


def numbers(wire: pb.VectorSource, count: int, of: str, field: FieldPath) -> np.ndarray:
    """A vector that is no row of activations, such as a bias: float32 [count], finite. `of` names
    what has so many."""
    match wire.WhichOneof("source"):
        case "tensor":
            return tensor_fields.vector(wire.tensor, count, of, (*field, "tensor"))
        case "kept" | "edit" | "steering_vector" | "feature" as kind:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"there is a number for each direction, and {kind} names rows of activations; send "
                "a tensor",
                field=(*field, kind),
            )
        case _:
            raise _no_source(wire, f"[{count}]", field)


def unset(field: FieldPath, shape: str) -> ActserveError:
    """There is no source at all."""
    return ActserveError(
        Reason.FIELD_REQUIRED,
        f"the source is not set; send a tensor of shape {shape}, or name another source",
        field=field,
    )


def _kept(wire: pb.KeptRows, target: Target, found: Found, field: FieldPath) -> np.ndarray:
    return found.rows.rows(
        wire, found.kept[kept_rows.key(wire)], target.sites, target.head, found.info, field
    )


def _no_source(wire: Source, shape: str, field: FieldPath) -> ActserveError:
    known = wire.DESCRIPTOR.oneofs_by_name["source"].fields
    names = ", ".join(each.name for each in known if each.full_name not in not_served.FIELDS)
    return ActserveError(
        Reason.FIELD_REQUIRED,
        f"the source is of no kind that this server knows; send a tensor of shape {shape}, or set "
        f"one of {names}",
        field=field,
    )


def _check_edit_fits(vector: np.ndarray, target: Target, field: FieldPath) -> None:
    if len(vector) != target.width:
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"an edit is a whole row, {len(vector)} wide, but {target.name} is {target.width} "
            "wide; leave heads empty",
            field=field,
            metadata={"width": target.width},
        )
