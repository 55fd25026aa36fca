"""Vector rows: what a caller gives as a vector, as one steering vector for each site."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.sites import HookPoint, Site, SiteLike, plain_sites
from actserve.steering_vectors import SteeringVector
from actserve.stored_vectors import StoredVector
from actserve.tensors import as_array


def vector_rows(
    vector: Any, sites: SiteLike | Iterable[SiteLike] | None = None
) -> list[SteeringVector]:
    """One steering vector for each site, of one width and each site once.

    Takes a `SteeringVector` or several, a mapping of sites to arrays, a `StoredVector` with its
    elements, repeng's `ControlVector`, or with `sites` an array of shape [width] or [sites, width].
    Raises `InvalidRequest`.
    """
    if sites is not None:
        return _of_array(vector, sites)
    match vector:
        case SteeringVector():
            rows = [vector]
        case StoredVector():
            rows = vector.vectors()
        case Mapping():
            rows = [SteeringVector(site, values) for site, values in vector.items()]
        case _ if _is_control_vector(vector):
            rows = of_control_vector(vector)
        case list() | tuple() if all(isinstance(v, SteeringVector) for v in vector):
            rows = [*vector]
        case _:
            raise InvalidRequest(
                f"the vector is {described(vector)}; give a SteeringVector or a list of them, a "
                "mapping such as {'resid_post.10': values}, or an array and its sites",
                reason="FIELD_INVALID",
                path=("vector",),
            )
    return _checked(rows)


def of_control_vector(vector: Any) -> list[SteeringVector]:
    """The rows of repeng's `ControlVector`, which adds `directions[L]` to what block L gives, of
    which the first is 0: `resid_post.L`."""
    note = f"repeng control vector of {vector.model_type}"
    return [
        SteeringVector(Site(HookPoint.RESID_POST, int(layer)), values, note)
        for layer, values in sorted(vector.directions.items())
    ]


def _is_control_vector(vector: Any) -> bool:
    directions = getattr(vector, "directions", None)
    return (
        isinstance(getattr(vector, "model_type", None), str)
        and isinstance(directions, Mapping)
        and bool(directions)
    )


def _of_array(values: Any, sites: SiteLike | Iterable[SiteLike]) -> list[SteeringVector]:
    named = plain_sites(sites)
    rows = np.atleast_2d(as_array(values, "the vector", ("width",), ("sites", "width")))
    if len(rows) != len(named):
        raise InvalidRequest(
            f"there are {len(rows)} rows for {len(named)} sites; give one row for each site",
            reason="TENSOR_SIZE_MISMATCH",
            path=("vector",),
        )
    return [SteeringVector(site, row) for site, row in zip(named, rows, strict=True)]


def _checked(rows: list[SteeringVector]) -> list[SteeringVector]:
    if not rows:
        raise InvalidRequest(
            "the vector has no row; give one for at least one site",
            reason="FIELD_REQUIRED",
            path=("vector",),
        )
    sites = [row.site for row in rows]
    if twice := next((site for site in sites if sites.count(site) > 1), None):
        raise InvalidRequest(
            f"{twice} has two rows; give each site one", reason="SITE_INVALID", path=("vector",)
        )
    if other := next((row for row in rows if row.shape != rows[0].shape), None):
        raise InvalidRequest(
            f"the row of {other.site} is {len(other)} wide and that of {rows[0].site} "
            f"{len(rows[0])}; the rows of a vector are of one width",
            reason="TENSOR_WIDTH_MISMATCH",
            path=("vector",),
        )
    return rows
