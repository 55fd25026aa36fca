"""Ids that callers give their requests, so that one made again finds what it has kept or made."""

import hashlib

from google.protobuf.message import Message

from actserve.v1 import attribution_graph_service_pb2 as graphs_pb
from actserve.v1 import dictionary_service_pb2 as dictionaries_pb
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import monitor_service_pb2 as monitors_pb
from actserve.v1 import steering_vector_service_pb2 as vectors_pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.making_requests import MakingRequest
from actserve_server.engine.fair_threads import off_loop

MAX_BYTES = 128
"""Of a request id, in UTF-8."""

Request = pb.FetchActivationsRequest | pb.GenerateRequest
MakingVector = (
    vectors_pb.CreateSteeringVectorRequest
    | vectors_pb.MakeSteeringVectorRequest
    | vectors_pb.CombineSteeringVectorsRequest
)
MakingMonitor = monitors_pb.CreateMonitorRequest | monitors_pb.FitMonitorRequest
Making = (
    MakingVector
    | MakingMonitor
    | dictionaries_pb.BeginUploadRequest
    | graphs_pb.CreateAttributionGraphRequest
)


async def request_digest(wire: Request, field: FieldPath) -> bytes | None:
    """Equal requests of an id have the same one, and no others do; None without an id or without
    anything to keep."""
    _check(wire.request_id, field)
    if not wire.request_id or not any(each.HasField("keep") for each in wire.readouts):
        return None
    # In a thread: a request may be tens of megabytes.
    return await off_loop(_digest, wire)


async def making_request(wire: Making) -> MakingRequest:
    """What tells that a request is made again. Raises FIELD_REQUIRED without an id."""
    field = ("request_id",)
    if not wire.request_id:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "request_id is not set; choose one for every new request, such as a UUID, and send it "
            "again if the request is made again",
            field=field,
        )
    _check(wire.request_id, field)
    kind = wire.DESCRIPTOR.full_name.encode()
    sha256 = hashlib.sha256(kind + await off_loop(_digest, wire)).digest()
    return MakingRequest(id=wire.request_id, sha256=sha256)


def _check(request_id: str, field: FieldPath) -> None:
    size = len(request_id.encode())
    if size > MAX_BYTES or "\0" in request_id:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"request_id has {size} bytes; use at most {MAX_BYTES}, without NUL characters, such "
            "as a UUID",
            field=field,
            metadata={"bytes": size, "limit": MAX_BYTES},
        )


def _digest(wire: Message) -> bytes:
    return hashlib.sha256(wire.SerializeToString(deterministic=True)).digest()
