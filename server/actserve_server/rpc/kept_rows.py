"""Kept rows named by an intervention: looked up, checked, and cut to what each site and head
takes of them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from actserve.v1 import intervention_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Replace
from actserve_server.domain.sites import Site
from actserve_server.readouts.kept import Kept, KeptStore
from actserve_server.rpc.heads import row_shape
from actserve_server.rpc.operations import Part
from actserve_server.rpc.sites import site


def is_named(wire: pb.Intervention) -> bool:
    """Whether the intervention replaces with kept rows."""
    named = wire.WhichOneof("operation") == "replace"
    return named and wire.replace.WhichOneof("source") == "kept"


def look_up(wire: Sequence[pb.Intervention], store: KeptStore, field: str) -> Mapping[str, Kept]:
    """All that interventions name, by name. To be called on the event loop's thread."""
    found: dict[str, Kept] = {}
    for index, item in enumerate(wire):
        if is_named(item):
            at, name = f"{field}[{index}].replace.kept.name", item.replace.kept.name
            if not name:
                raise ActserveError(
                    Reason.FIELD_REQUIRED,
                    f"{at} is not set; send what `kept` was when the capture had finished",
                    field=at,
                )
            found[name] = store.get(name)
    return found


def parts(
    wire: pb.KeptRows,
    kept: Mapping[str, Kept],
    where: tuple[Site, ...],
    heads: tuple[int, ...],
    info: ModelInfo,
    field: str,
) -> tuple[Part, ...]:
    """Replacements of the rows of some sites, or of some heads in them, by kept ones.

    Each site takes its own rows unless another's are named, and each head its own part of a row.
    """
    rows_of = kept[wire.name]
    positions = tuple(wire.positions)
    if any(before >= after for before, after in pairwise(positions)):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the positions are not ascending; send each once, in ascending order",
            field=f"{field}.positions",
        )
    if not wire.HasField("site"):
        return tuple(
            part
            for each in where
            for part in _parts(
                (each,), _finite(rows_of.rows(each, positions, field), each, field), heads, info
            )
        )
    source = site(wire.site, info, f"{field}.site")
    rows = _finite(rows_of.rows(source, positions, field), source, field)
    given, wanted = (row_shape(each, info, heads=bool(heads)) for each in (source, where[0]))
    if given != wanted:
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"the kept rows of {source} are {given}, but {where[0]} is {wanted}; take those of a "
            "site of the same shape",
            field=f"{field}.site",
            metadata={"site": source},
        )
    return tuple(_parts(where, rows, heads, info))


def _parts(
    where: tuple[Site, ...], rows: np.ndarray, heads: tuple[int, ...], info: ModelInfo
) -> list[Part]:
    if not heads:
        return [Part(where, Replace(rows))]
    width = rows.shape[1] // info.at(where[0]).heads
    return [
        Part(where, Replace(rows[:, head * width : (head + 1) * width]), (head,)) for head in heads
    ]


def _finite(rows: np.ndarray, source: Site, field: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"the kept rows of {source} are not all finite, as the model computed them; take "
            "others",
            field=field,
            metadata={"site": source},
        )
    return rows
