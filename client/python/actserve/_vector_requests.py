"""Vector requests: what is asked of the service that stores vectors.

A request that makes something has an id of its own, which stays when the call is made again: what
the first attempt made is not made twice.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve._checks import described, finite, unicode
from actserve._names import adapter_name
from actserve._vector_rows import vector_rows
from actserve.errors import InvalidRequest
from actserve.kept import KeptRows
from actserve.positions import positions_to_proto
from actserve.prompts import prompt_to_proto
from actserve.sites import Site, plain_sites
from actserve.sources import matrix_to_proto
from actserve.stored_vectors import Stored, StoredVector, VectorTerm, stored, vector_method
from actserve.tensors import as_array, encode
from actserve.v1 import source_pb2
from actserve.v1 import steering_vector_service_pb2 as pb


@dataclass(frozen=True)
class VectorRequests:
    """Makes the requests of one client."""

    model: str
    """Resource name, or empty for the only one."""

    def store(
        self, name: str, vector: Any, sites: Any, labels: Any
    ) -> pb.CreateSteeringVectorRequest:
        named, rows = _rows(vector, sites)
        return pb.CreateSteeringVectorRequest(
            model=self.model,
            steering_vector_id=vector_id(name),
            sites=[site.to_proto() for site in named],
            rows=rows,
            labels=checked_labels(labels),
            request_id=uuid.uuid4().hex,
        )

    def create(
        self,
        name: str,
        positive: Any,
        negative: Any,
        sites: Any,
        *,
        method: Any,
        positions: Any,
        labels: Any,
        adapter: Any,
    ) -> pb.MakeSteeringVectorRequest:
        request = pb.MakeSteeringVectorRequest(
            model=self.model,
            steering_vector_id=vector_id(name),
            sites=[site.to_proto() for site in plain_sites(sites)],
            method=vector_method(method),
            labels=checked_labels(labels),
            request_id=uuid.uuid4().hex,
            adapter=adapter_name(adapter),
        )
        if _is_rows(positive) and _is_rows(negative):
            _check_no_prompts(positions, adapter)
            request.rows.CopyFrom(_labelled(positive, negative))
            return request
        request.prompts.positive.extend(_prompts(positive, "positive"))
        request.prompts.negative.extend(_prompts(negative, "negative"))
        if positions is not None:
            request.prompts.positions.CopyFrom(positions_to_proto(positions))
        return request

    def combine(
        self, name: str, terms: Any, without: Any, norm: Any, labels: Any
    ) -> pb.CombineSteeringVectorsRequest:
        return pb.CombineSteeringVectorsRequest(
            model=self.model,
            steering_vector_id=vector_id(name),
            combination=pb.VectorCombination(
                terms=[term.to_proto() for term in terms],
                without=[_uncounted(term) for term in without],
                norm=None if norm is None else finite(norm, "norm"),
            ),
            labels=checked_labels(labels),
            request_id=uuid.uuid4().hex,
        )


def vector_id(name: Any) -> str:
    """The id of a vector to make. Raises `InvalidRequest` for the name of one in a model."""
    if not stored(name).is_short:
        raise InvalidRequest(
            f"{described(name)} is the name of a vector of some model; give the id alone, such as "
            "'joy'",
            reason="FIELD_INVALID",
            path=("name",),
        )
    return stored(name).name


def checked_labels(labels: Any) -> dict[str, str]:
    """Labels; None is none. Raises `InvalidRequest`."""
    if labels is None:
        return {}
    if not isinstance(labels, Mapping) or not all(
        isinstance(part, str) for pair in labels.items() for part in pair
    ):
        raise InvalidRequest(
            f"the labels are {described(labels)}; give texts by texts, as in {{'concept': 'joy'}}",
            reason="FIELD_INVALID",
            path=("labels",),
        )
    return {unicode(key, "a label"): unicode(each, "a label") for key, each in labels.items()}


def checked_terms(terms: Any, what: str) -> tuple[VectorTerm, ...]:
    """What is added up: coefficients by name, or vectors, of which each counts once. Raises
    `InvalidRequest`."""
    if isinstance(terms, Mapping):
        return tuple(VectorTerm(vector, number) for vector, number in terms.items())
    if isinstance(terms, str | Stored | StoredVector | VectorTerm):
        terms = (terms,)
    if not isinstance(terms, Iterable):
        raise InvalidRequest(
            f"{what} is {described(terms)}; give names and coefficients, as in "
            "{'joy': 1, 'anger': -0.5}, or a list of names",
            reason="FIELD_INVALID",
            path=(what,),
        )
    return tuple(each if isinstance(each, VectorTerm) else VectorTerm(each) for each in terms)


def _rows(vector: Any, sites: Any) -> tuple[tuple[Site, ...], source_pb2.MatrixSource]:
    """The sites of a vector and its rows; rows that the server keeps are named."""
    if isinstance(vector, KeptRows):
        named = sites if vector.site is None else (vector.site,)
        if named is None:
            raise InvalidRequest(
                "the vector is rows that are kept, and no site is named; name it, as in "
                "KeptRows(name, site, position)",
                reason="FIELD_REQUIRED",
                path=("sites",),
            )
        return plain_sites(named), matrix_to_proto(vector)
    rows = vector_rows(vector, sites)
    return tuple(row.site for row in rows), matrix_to_proto(np.stack([row.values for row in rows]))


def _is_rows(examples: Any) -> bool:
    """Whether these are rows of a site: a matrix of numbers that are no token ids."""
    dtype, ndim = getattr(examples, "dtype", None), getattr(examples, "ndim", None)
    return ndim == 2 and "float" in str(dtype)


def _labelled(positive: Any, negative: Any) -> pb.LabelledRows:
    parts = [
        as_array(rows, name, ("rows", "width"))
        for rows, name in ((positive, "positive"), (negative, "negative"))
    ]
    if parts[0].shape[1] != parts[1].shape[1]:
        raise InvalidRequest(
            f"positive rows are {parts[0].shape[1]} wide and negative ones {parts[1].shape[1]}; "
            "both are rows of one site",
            reason="TENSOR_WIDTH_MISMATCH",
        )
    return pb.LabelledRows(
        rows=source_pb2.MatrixSource(tensor=encode(np.concatenate(parts))),
        positive=[True] * len(parts[0]) + [False] * len(parts[1]),
    )


def _check_no_prompts(positions: Any, adapter: Any) -> None:
    for name, given in (("positions", positions), ("adapter", adapter)):
        if given is not None:
            raise InvalidRequest(
                f"{name} is about prompts, but rows are given; leave it out",
                reason="FIELD_INVALID",
                path=(name,),
            )


def _prompts(prompts: Any, name: str) -> list[Any]:
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise InvalidRequest(
            f"{name} is {described(prompts)}; give a list of prompts, or rows [rows, width]",
            reason="FIELD_INVALID",
            path=(name,),
        )
    found = [prompt_to_proto(each) for each in prompts]
    if not found:
        raise InvalidRequest(
            f"{name} is empty; give at least one prompt", reason="FIELD_REQUIRED", path=(name,)
        )
    return found


def _uncounted(term: VectorTerm) -> pb.VectorTerm:
    """What is to be taken out: a term whose direction counts, and which has no coefficient."""
    if term.coefficient != 1.0:
        raise InvalidRequest(
            f"without has the coefficient {term.coefficient:g}, but of what is taken out only the "
            "direction counts; leave it out",
            reason="FIELD_INVALID",
            path=("without",),
        )
    proto = term.to_proto()
    proto.ClearField("coefficient")
    return proto
