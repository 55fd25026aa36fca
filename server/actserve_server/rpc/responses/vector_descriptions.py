"""Stored vectors for the wire."""

from google.protobuf.timestamp_pb2 import Timestamp

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc.requests import site_fields
from actserve_server.rpc.resource_names import adapter_name, steering_vector_name
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

METHODS = {pb.VectorMethod.Value(f"VECTOR_METHOD_{each.name}"): each for each in Method}
_WIRE_METHODS = {method: wire for wire, method in METHODS.items()}


def to_wire(stored: StoredVector, info: ModelInfo) -> pb.SteeringVector:
    created = Timestamp()
    created.FromMicroseconds(stored.created_at_us)
    return pb.SteeringVector(
        name=steering_vector_name(info.id, stored.id),
        rows=[_row(row) for row in stored.rows],
        shape=[len(stored.rows), stored.width],
        labels=stored.labels,
        provenance=_provenance(stored.provenance, info),
        model_path=stored.model_path,
        content_sha256=stored.content_sha256,
        create_time=created,
        etag=stored.etag,
    )


def _row(row: VectorRow) -> pb.SteeringVectorRow:
    separation = None if row.separation is None else _separation(row.separation)
    return pb.SteeringVectorRow(
        site=site_fields.to_wire(row.site),
        norm=row.norm,
        median_row_norm=row.median_row_norm,
        separation=separation,
    )


def _separation(separation: Separation) -> pb.SeparationReport:
    return pb.SeparationReport(
        held_out_auroc=separation.held_out_auroc, half_cosine=separation.half_cosine
    )


def _provenance(provenance: Provenance, info: ModelInfo) -> pb.VectorProvenance:
    match provenance:
        case Given():
            return pb.VectorProvenance(given=pb.GivenVector())
        case Contrasted():
            return pb.VectorProvenance(
                contrasted=pb.ContrastedVector(
                    method=_WIRE_METHODS[provenance.method],  # pyright: ignore[reportArgumentType]
                    positives=provenance.positives,
                    negatives=provenance.negatives,
                    prompts=provenance.prompts,
                    adapter=adapter_name(info.id, provenance.adapter) if provenance.adapter else "",
                )
            )
        case Combination():
            return pb.VectorProvenance(
                combination=pb.VectorCombination(
                    terms=[_term(each, info) for each in provenance.terms],
                    without=[_term(each, info) for each in provenance.without],
                    norm=provenance.norm,
                )
            )


def _term(term: Term, info: ModelInfo) -> pb.VectorTerm:
    return pb.VectorTerm(
        steering_vector=steering_vector_name(info.id, term.vector),
        coefficient=term.coefficient,
        site=None if term.site is None else site_fields.to_wire(term.site),
    )
