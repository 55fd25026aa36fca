"""Servers that refuse: each call fails with a status and its details."""

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2


def abort(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str = "no",
    *details: Any,
    raw: bytes | None = None,
) -> None:
    """Ends a call with these details, or with bytes in their place."""
    packed = [any_pb2.Any() for _ in details]
    for any_message, detail in zip(packed, details, strict=True):
        any_message.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata(
        (("grpc-status-details-bin", status.SerializeToString() if raw is None else raw),)
    )
    context.abort(code, message)


def bad_field(field: str, description: str) -> error_details_pb2.BadRequest:
    """What says that a field is to blame, and of what."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return error_details_pb2.BadRequest(field_violations=[violation])
