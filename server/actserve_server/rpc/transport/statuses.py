"""The one place that turns an error into a gRPC status.

Every status carries `ErrorInfo` (reason, domain, metadata) and `RequestInfo`, `BadRequest` where a
field is to blame, and beside them the detail that fits its kind. The status message begins with the
path of the field; the description in `BadRequest` is the message without it, for clients that tell
the two apart. What the service did not foresee becomes INTERNAL without a word about
the server's inside.
"""

import math
from typing import NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from actserve.paths import format_path
from actserve_server.domain.errors import ActserveError, Kind, Reason
from actserve_server.logs import described
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.calls import Call, current_call
from actserve_server.version import VERSION

DOMAIN = "actserve.dev"
MODEL_TYPE = "actserve.v1.Model"

CODES = {
    Kind.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Kind.ABORTED: grpc.StatusCode.ABORTED,
    Kind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}

MAX_TEXT_CHARS = 600
"""Of a message or a metadata value. They travel in HTTP/2 trailers, several times over, and stock
clients fail the call when those exceed 8 KiB; a value quoted from a request may be megabytes."""

log = structlog.get_logger("actserve.rpc")


def code_of(error: ActserveError) -> grpc.StatusCode:
    return CODES[error.kind]


def to_status(error: ActserveError, call: Call) -> status_pb2.Status:
    """The wire form of an error."""
    message = bounded(error.message)
    where = ", ".join(format_path(path) for path in (error.field, error.item) if path)
    status = status_pb2.Status(
        code=code_of(error).value[0], message=f"{where}: {message}" if where else message
    )
    for detail in _details(error, message, call):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def bounded(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _details(error: ActserveError, message: str, call: Call) -> list[Message]:
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.value,
            domain=DOMAIN,
            metadata={key: bounded(value) for key, value in _metadata(error).items()},
        ),
        error_details_pb2.RequestInfo(request_id=call.id),
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=format_path(error.field), description=message, reason=error.reason.value
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.kind is Kind.NOT_FOUND:
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=error.metadata.get("resource_type", MODEL_TYPE),
                resource_name=bounded(error.metadata.get("resource_name", "")),
                description=message,
            )
        )
    if error.kind is Kind.FAILED_PRECONDITION:
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason.value, subject=format_path(error.field), description=message
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if error.kind is Kind.RESOURCE_EXHAUSTED:
        exceeded = error_details_pb2.QuotaFailure.Violation(
            subject=format_path(error.field), description=message
        )
        details.append(error_details_pb2.QuotaFailure(violations=[exceeded]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _metadata(error: ActserveError) -> dict[str, str]:
    item = {"item": format_path(error.item)} if error.item else {}
    return error.metadata | item


def foreseen(error: Exception) -> ActserveError:
    """`error` itself if callers may be told about it; else it is logged, and INTERNAL."""
    if isinstance(error, ActserveError):
        return error
    # Its message is one level away, for whoever debugs a server of their own.
    log.debug("message of the unexpected error", text=str(error))
    log.error("unexpected error", request_id=current_call().id, **described(error))
    return ActserveError(
        Reason.INTERNAL,
        f"internal error; the server's log has it under request id {current_call().id}",
    )


def _pushback(error: ActserveError) -> list[tuple[str, str]]:
    """The trailer by which gRPC's own retries wait as long as RetryInfo says."""
    if error.retry_after_s is None:
        return []
    return [("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000)))]


def item_status(error: ActserveError, call: Call) -> status_pb2.Status:
    """The status of an item that fails while its call goes on."""
    metrics.refused(call, error)
    return to_status(error, call)


def told_at_the_end(call: Call) -> tuple[tuple[str, str], ...]:
    """The trailers of every call. Not headers: once those are sent, clients no longer retry a call
    that is refused."""
    return ("x-request-id", call.id), ("x-actserve-version", VERSION)


async def abort(context: grpc.aio.ServicerContext, error: ActserveError) -> NoReturn:
    """Ends the call with the status of `error`."""
    call = current_call()
    call.reason = error.reason.value
    metrics.refused(call, error)
    status = rpc_status.to_status(to_status(error, call))
    await context.abort(
        status.code,
        status.details,
        (*status.trailing_metadata, *told_at_the_end(call), *_pushback(error)),
    )
    raise AssertionError("abort returned")
