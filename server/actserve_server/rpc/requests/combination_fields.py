"""What is to be computed from stored vectors, from the wire."""

from collections.abc import Mapping, Sequence

import numpy as np

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.rpc.requests import site_fields, stored_vector_rows
from actserve_server.steering.arithmetic import combine
from actserve_server.steering.stored_vectors import Combination, LoadedVector, Term

MAX_TERMS = 64
"""Of the sum, and as many to leave out."""
FIELD = ("combination",)


def combination(wire: pb.VectorCombination, info: ModelInfo) -> Combination:
    """Raises FIELD_REQUIRED, FIELD_INVALID, RESOURCE_NOT_FOUND for what is no name of a vector of
    this model, and as `site_fields.origin`."""
    if not wire.terms:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the combination has no terms; send at least one",
            field=(*FIELD, "terms"),
        )
    for index, each in enumerate(wire.without):
        if each.HasField("coefficient"):
            raise ActserveError(
                Reason.FIELD_INVALID,
                "what is left out is a direction, whatever its coefficient; leave it unset",
                field=(*FIELD, "without", index, "coefficient"),
            )
    norm = wire.norm if wire.HasField("norm") else None
    if norm is not None and not 0 < norm < np.inf:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the norm is {norm:g}; it must be positive and finite, or unset",
            field=(*FIELD, "norm"),
        )
    return Combination(
        terms=_terms(wire.terms, info, (*FIELD, "terms")),
        without=_terms(wire.without, info, (*FIELD, "without")),
        norm=norm,
    )


def vector_fields(wanted: Combination) -> Mapping[str, FieldPath]:
    """The ids of all vectors in it, with where each is named first."""
    fields: dict[str, FieldPath] = {}
    for kind, terms in (("terms", wanted.terms), ("without", wanted.without)):
        for index, term in enumerate(terms):
            fields.setdefault(term.vector, (*FIELD, kind, index, "steering_vector"))
    return fields


def combined(
    wanted: Combination, vectors: Mapping[str, LoadedVector]
) -> tuple[tuple[Site, ...], np.ndarray]:
    """The sites of the result, and its rows, float32 [sites, width]. To be called in a thread.

    Raises SITE_INVALID unless all vectors have rows of the same sites, TENSOR_WIDTH_MISMATCH, and
    as `arithmetic.combine`.
    """
    first, sites = _rows(wanted.terms[0], vectors, (*FIELD, "terms", 0))
    width = first.shape[1]

    def aligned(term: Term, at: FieldPath) -> np.ndarray:
        rows, own = _rows(term, vectors, at)
        if set(own) != set(sites):
            raise ActserveError(
                Reason.SITE_INVALID,
                f"the vector has rows of {_listed(own)}, but the first term of {_listed(sites)}; "
                "combine vectors of the same sites, or name the site of one row of each",
                field=at,
            )
        if rows.shape[1] != width:
            raise ActserveError(
                Reason.TENSOR_WIDTH_MISMATCH,
                f"the vector is {rows.shape[1]} wide, but the first term is {width} wide; combine "
                "vectors of one width",
                field=at,
                metadata={"width": width},
            )
        return rows[[own.index(site) for site in sites]]

    terms = [
        (
            1.0 if term.coefficient is None else term.coefficient,
            aligned(term, (*FIELD, "terms", index)),
        )
        for index, term in enumerate(wanted.terms)
    ]
    without = [
        aligned(term, (*FIELD, "without", index)) for index, term in enumerate(wanted.without)
    ]
    try:
        return sites, combine(terms, without, wanted.norm)
    except ActserveError as error:
        error.field = (*FIELD, *error.field)
        raise


def _terms(wire: Sequence[pb.VectorTerm], info: ModelInfo, field: FieldPath) -> tuple[Term, ...]:
    if len(wire) > MAX_TERMS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {len(wire)} vectors, but there may be at most {MAX_TERMS}; combine some of "
            "them first",
            field=field,
            metadata={"terms": len(wire), "limit": MAX_TERMS},
        )
    return tuple(_term(each, info, (*field, index)) for index, each in enumerate(wire))


def _term(wire: pb.VectorTerm, info: ModelInfo, field: FieldPath) -> Term:
    coefficient = wire.coefficient if wire.HasField("coefficient") else None
    if coefficient is not None and not np.isfinite(coefficient):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the coefficient is {coefficient}; it must be finite",
            field=(*field, "coefficient"),
        )
    site = None
    if wire.HasField("site"):
        site = site_fields.origin(wire.site, info, (*field, "site"))
    name = stored_vector_rows.vector_id(wire.steering_vector, info, (*field, "steering_vector"))
    return Term(vector=name, coefficient=coefficient, site=site)


def _rows(
    term: Term, vectors: Mapping[str, LoadedVector], field: FieldPath
) -> tuple[np.ndarray, tuple[Site, ...]]:
    """The rows of a term, with their sites."""
    vector = vectors[term.vector]
    sites = vector.stored.sites
    if term.site is None:
        return vector.elements, sites
    if term.site not in sites:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"the vector has no row of {term.site}; name one of {_listed(sites)}",
            field=(*field, "site"),
            metadata={"site": term.site},
        )
    index = sites.index(term.site)
    return vector.elements[index : index + 1], (term.site,)


def _listed(sites: Sequence[Site], most: int = 8) -> str:
    return ", ".join(map(str, sites[:most])) + ", ..." * (len(sites) > most)
