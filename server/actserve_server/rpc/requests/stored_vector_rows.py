"""Stored vectors named by a request: looked up, and cut to the row that each site takes."""

from collections.abc import Mapping

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.rpc.resource_names import model_name, steering_vector_id
from actserve_server.steering import registry
from actserve_server.steering.registry import VectorRegistry
from actserve_server.steering.stored_vectors import LoadedVector


def vector_id(name: str, info: ModelInfo, field: FieldPath) -> str:
    """The id of the vector that a request names. Raises FIELD_REQUIRED, or RESOURCE_NOT_FOUND for
    what cannot be the name of one of the served model."""
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the name is not set; send {model_name(info)}/steeringVectors/ and the vector's id",
            field=field,
        )
    found = steering_vector_id(name, info)
    if found is None:
        form = f"{model_name(info)}/steeringVectors/"
        raise registry.not_found(name, field, f"send {form} and a vector's id")
    return found


async def look_up(
    names: Mapping[FieldPath, str], vectors: VectorRegistry, tenant: str, info: ModelInfo
) -> Mapping[str, LoadedVector]:
    """The vectors of these names, by name."""
    ids = {name: vector_id(name, info, at) for at, name in names.items()}
    where: dict[str, FieldPath] = {}
    for at, name in names.items():
        where.setdefault(ids[name], at)
    loaded = await vectors.load(tenant, where)
    return {name: loaded[each] for name, each in ids.items()}


def row(
    vector: LoadedVector, site: Site, width: int, of: str, *, head: bool, field: FieldPath
) -> np.ndarray:
    """The row for a site: its only one, or its own of several; float32 [width]. `of` names what is
    `width` wide; with `head` that is a part of a row.

    Raises SITE_INVALID or TENSOR_WIDTH_MISMATCH.
    """
    stored = vector.stored
    if stored.width != width:
        fix = "leave heads empty" if head else "name another vector, or another site"
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"the steering vector is {stored.width} wide, but {of} is {width} wide; {fix}",
            field=field,
            metadata={"width": width, "site": site},
        )
    if len(stored.rows) == 1:
        chosen = 0
    elif site in stored.sites:
        chosen = stored.sites.index(site)
    else:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"the steering vector has no row for {site}; use it at some of "
            f"{', '.join(map(str, stored.sites))}",
            field=field,
            metadata={"site": site},
        )
    # A copy, since a view would keep all rows for as long as this one is used.
    return vector.elements[chosen].copy()
