"""Stored vectors as rows of the database."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy.engine import Row

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.steering.stored_vectors import (
    Combination,
    Contrasted,
    Given,
    Method,
    Provenance,
    Separation,
    StoredVector,
    Term,
    VectorRow,
)

Json = Any
"""What JSON holds."""


def read_vector(record: "Row[Any]") -> StoredVector:
    """The vector of a row of `steering_vectors`."""
    return StoredVector(
        id=record.id,
        rows=tuple(map(_read_row, record.rows)),
        width=record.width,
        labels=record.labels,
        provenance=_read_provenance(record.provenance),
        model_path=record.model_path,
        content_sha256=bytes(record.content_sha256),
        created_at_us=record.create_time_us,
        etag=record.etag,
    )


def write_rows(rows: tuple[VectorRow, ...]) -> Json:
    return [{**asdict(row), "site": _write_site(row.site)} for row in rows]


def write_provenance(provenance: Provenance) -> Json:
    match provenance:
        case Given():
            return {"given": {}}
        case Contrasted():
            return {"contrasted": asdict(provenance)}
        case Combination(terms=terms, without=without, norm=norm):
            return {
                "combination": {
                    "terms": [_write_term(each) for each in terms],
                    "without": [_write_term(each) for each in without],
                    "norm": norm,
                }
            }


def _read_row(row: Mapping[str, Json]) -> VectorRow:
    separation = row["separation"]
    return VectorRow(
        site=_read_site(row["site"]),
        norm=row["norm"],
        median_row_norm=row["median_row_norm"],
        separation=None if separation is None else Separation(**separation),
    )


def _read_provenance(provenance: Mapping[str, Json]) -> Provenance:
    ((kind, value),) = provenance.items()
    match kind:
        case "contrasted":
            return Contrasted(**{**value, "method": Method(value["method"])})
        case "combination":
            return Combination(
                terms=tuple(map(_read_term, value["terms"])),
                without=tuple(map(_read_term, value["without"])),
                norm=value["norm"],
            )
        case _:
            return Given()


def _write_term(term: Term) -> Json:
    site = None if term.site is None else _write_site(term.site)
    return {"vector": term.vector, "coefficient": term.coefficient, "site": site}


def _read_term(term: Mapping[str, Json]) -> Term:
    site = term["site"]
    return Term(
        vector=term["vector"],
        coefficient=term["coefficient"],
        site=None if site is None else _read_site(site),
    )


def _write_site(site: Site) -> Json:
    return {"hook_point": str(site.hook_point), "layer": site.layer}


def _read_site(site: Mapping[str, Json]) -> Site:
    return Site(HookPoint(site["hook_point"]), site["layer"])
