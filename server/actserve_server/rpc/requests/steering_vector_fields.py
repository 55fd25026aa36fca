"""Steering vectors to be stored, from the wire."""

from collections.abc import Mapping, Sequence

import numpy as np

from actserve.v1 import site_pb2
from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.rpc.requests import vector_sources
from actserve_server.rpc.requests.site_fields import sites
from actserve_server.rpc.requests.vector_sources import Found, Target
from actserve_server.steering.registry import ID

MAX_LABELS = 64
MAX_LABEL_KEY_BYTES = 63
MAX_LABEL_BYTES = 255
"""Of a label's value."""
_SHOWN = 64
"""Characters of what was sent that an error tells again."""


def new_id(wire: str) -> str:
    """The id that a vector is to have; empty when the server is to choose. Raises FIELD_INVALID."""
    if wire and not ID.fullmatch(wire):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"steering_vector_id is {wire[:_SHOWN]!r}; use 1 to 63 lower-case letters, digits and "
            "hyphens, from a letter on, or leave it unset",
            field=("steering_vector_id",),
        )
    return wire


def labels(wire: Mapping[str, str], field: FieldPath = ("labels",)) -> Mapping[str, str]:
    """Labels, as a vector may have them. Raises FIELD_INVALID."""
    if len(wire) > MAX_LABELS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {len(wire)} labels; use at most {MAX_LABELS}",
            field=field,
            metadata={"labels": len(wire), "limit": MAX_LABELS},
        )
    for key, value in wire.items():
        _check_text(f"the label {key[:_SHOWN]!r} has a key", key, MAX_LABEL_KEY_BYTES, field)
        _check_text(f"the label {key[:_SHOWN]!r} has a value", value, MAX_LABEL_BYTES, field)
        if not key:
            raise ActserveError(
                Reason.FIELD_INVALID, "a label has an empty key; name it", field=field
            )
    return dict(wire)


def vector_sites(
    wire: Sequence[site_pb2.Site], info: ModelInfo, field: FieldPath = ("sites",)
) -> tuple[Site, ...]:
    """The served sites that a vector has rows for, all of one width. Raises as `sites`, or
    SITE_INVALID."""
    found = sites(wire, info, field)
    first = found[0]
    for index, site in enumerate(found):
        width = info.at(site).width
        if width != info.at(first).width:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"a row of {first} is {info.at(first).width} wide, but one of {site} is {width} "
                "wide; store a vector for each width",
                field=(*field, index),
                metadata={"site": site},
            )
    return found


def elements(
    wire: pb.CreateSteeringVectorRequest, where: tuple[Site, ...], found: Found
) -> np.ndarray:
    """The rows of a vector for these sites, float32 [sites, width], finite and none of them zero.

    Raises FIELD_REQUIRED, TENSOR_SIZE_MISMATCH unless there is one for each site,
    TENSOR_DEGENERATE for a zero one, and as `vector_sources.matrix`.
    """
    at = ("rows",)
    width = found.info.at(where[0]).width
    if not wire.HasField("rows"):
        raise vector_sources.unset(at, f"[{len(where)}, {width}]")
    groups: list[tuple[Site, ...]] = [where]
    if vector_sources.takes_own_rows(wire.rows, found):
        groups = [(site,) for site in where]
    parts = []
    for group in groups:
        target = Target(sites=group, width=width, name=f"a row of {group[0]}")
        rows = vector_sources.matrix(wire.rows, target, found, at)
        if len(rows) != len(group):
            raise ActserveError(
                Reason.TENSOR_SIZE_MISMATCH,
                f"there are {len(rows)} rows for {', '.join(map(str, group[:8]))}; give one for "
                "each site",
                field=at,
                metadata={"rows": len(rows), "expected_rows": len(group)},
            )
        parts.append(rows)
    made = np.concatenate(parts)
    check_rows(made, where, at)
    return made


def check_rows(rows: np.ndarray, where: tuple[Site, ...], field: FieldPath = ()) -> None:
    """Raises TENSOR_DEGENERATE for a row that points nowhere, and TENSOR_NOT_FINITE for one whose
    norm is beyond what float32 holds, which is told."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    for index, (norm, site) in enumerate(zip(norms, where, strict=True)):
        if norm == 0:
            raise ActserveError(
                Reason.TENSOR_DEGENERATE,
                f"the row for {site} is zero, which points nowhere; leave its site out",
                field=field,
                metadata={"row": index, "site": site},
            )
        if norm > np.finfo(np.float32).max:
            raise ActserveError(
                Reason.TENSOR_NOT_FINITE,
                f"the row for {site} has an L2 norm of {norm:.3g}, which float32 does not hold; "
                "scale it down",
                field=field,
                metadata={"row": index, "site": site},
            )


def _check_text(what: str, text: str, limit: int, field: FieldPath) -> None:
    size = len(text.encode())
    if size > limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{what} of {size} bytes; use at most {limit}",
            field=field,
            metadata={"bytes": size, "limit": limit},
        )
    if "\0" in text:
        # PostgreSQL holds every other character.
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{what} with a NUL character; leave it out",
            field=field,
        )
