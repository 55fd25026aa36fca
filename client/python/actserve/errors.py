"""Errors: one class for what a caller can do about it, filled from the server's error details."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from actserve.paths import FieldPath, format_path, parse_path

M = TypeVar("M", bound=Message)

DOMAIN = "actserve.dev"
"""`ErrorInfo.domain` of every reason this service owns."""

_DETAILS_KEY = "grpc-status-details-bin"
_ITEM_KEY = "item"
"""Of `ErrorInfo.metadata`: the path of the prompt that an error is about, where the field belongs
to all prompts of the call."""


class ActserveError(Exception):
    """A call that was refused or failed.

    `code` is the gRPC status code; `reason` a stable machine-readable name such as
    `LAYER_OUT_OF_RANGE`, empty when the failure is not the service's own; `message` names the
    value, the limit and the fix; `field` is the offending request field as it is written, such as
    `readouts[0].rows.sites[0]`, if one is, and `path` its names and indices; `metadata` holds the
    values of the message for programs; `retry_after` is the number of seconds after which the
    server suggests to try again, if it does; `request_id` is the server's id for the call, also in
    its logs, None where the server has not answered.
    """

    default_code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        path: FieldPath = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.path = path
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def field(self) -> str | None:
        return format_path(self.path) or None

    def __str__(self) -> str:
        told = (self.reason or self.code.name, self.field, self.metadata.get(_ITEM_KEY))
        return f"{self.message} ({', '.join(part for part in told if part)})"


class InvalidRequest(ActserveError, ValueError):
    """The request can never succeed as it is. Also raised before anything is sent."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotServed(ActserveError):
    """The request is well formed, but this server in this configuration does not serve it."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class NotFound(ActserveError):
    """A resource of that name does not exist."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ActserveError):
    """A resource of that name exists."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class Conflict(ActserveError):
    """Somebody else has changed it since it was read; read it again."""

    default_code = grpc.StatusCode.ABORTED


class Unauthenticated(ActserveError):
    """The token is missing or wrong; give `token=` to the client."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ActserveError):
    """The token does not allow this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(ActserveError):
    """A quota or a transport limit is reached."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(ActserveError):
    """The call took longer than its `timeout`."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ActserveError):
    """The call was cancelled."""

    default_code = grpc.StatusCode.CANCELLED


class Unavailable(ActserveError):
    """No server answers, or it is full or shutting down; try again, here or elsewhere."""

    default_code = grpc.StatusCode.UNAVAILABLE


class StreamCutShort(Unavailable):
    """The stream ended without `finished`: what arrived is incomplete and is withheld."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="STREAM_CUT_SHORT")


class ServerError(ActserveError):
    """The server failed, and says so."""

    default_code = grpc.StatusCode.INTERNAL


class BadResponse(ServerError):
    """The server broke the contract, such as by rows that are missing; the answer is withheld."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BAD_RESPONSE")


CLASSES: Mapping[grpc.StatusCode, type[ActserveError]] = {
    cls.default_code: cls
    for cls in (
        InvalidRequest,
        NotServed,
        NotFound,
        AlreadyExists,
        Conflict,
        Unauthenticated,
        PermissionDenied,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unavailable,
        ServerError,
    )
} | {
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
    grpc.StatusCode.DATA_LOSS: ServerError,
}
"""What is raised for each code; any other raises `ActserveError` itself."""


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _FailedCall(Protocol):
    """What a failed call offers, alike in grpc and grpc.aio."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> object: ...


_OF_CUT_STREAMS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_CUT = ("Stream removed", "RST_STREAM")
"""gRPC's words for a stream that a proxy has ended in the middle. Our servers always say why."""


def from_rpc(error: grpc.RpcError, target: str) -> ActserveError:
    """The error of a failed call to `target`, with the details the server attached."""
    call = cast(_FailedCall, error)
    code, told = call.code(), from_status(_details(call), call.code(), call.details() or "")
    if code is grpc.StatusCode.UNAVAILABLE and not told.reason:
        # gRPC's own words for a connection name an address at best, never the fix.
        fix = "check that the server runs there, and whether it wants TLS and a certificate"
        if "CERTIFICATE_VERIFY_FAILED" in told.message:
            fix = (
                "name the authority of its certificate: tls=grpc.ssl_channel_credentials(...), or "
            )
            fix += "ACTSERVE_TLS_CA for the command"
        told.message = f"{target} cannot be reached: {told.message}; {fix}"
    if code in _OF_CUT_STREAMS and not told.reason and any(w in told.message for w in _CUT):
        return StreamCutShort(
            f"{target} ended the stream without a status ({told.message}), as a proxy does whose "
            "server has died; what came is incomplete, ask again"
        )
    return told


def from_status(
    status: status_pb2.Status, code: grpc.StatusCode | None = None, message: str = ""
) -> ActserveError:
    """The error of a status with its details. `code` and `message` are the transport's own, where
    it has them."""
    code = code or _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    message = message or status.message
    reason = ""
    path: FieldPath = ()
    metadata: Mapping[str, str] | None = None
    retry_after: float | None = None
    request_id: str | None = None
    for packed in status.details:
        if info := _unpack(packed, error_details_pb2.ErrorInfo):
            if info.domain == DOMAIN:
                reason, metadata = info.reason, info.metadata
        elif bad := _unpack(packed, error_details_pb2.BadRequest):
            if violation := next((each for each in bad.field_violations if each.field), None):
                path = parse_path(violation.field)
                # The status begins with the path, which is told apart here.
                message = violation.description or message
        elif retry := _unpack(packed, error_details_pb2.RetryInfo):
            # By hand: a server may send what no timedelta holds.
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif call := _unpack(packed, error_details_pb2.RequestInfo):
            request_id = call.request_id
    return CLASSES.get(code, ActserveError)(
        message or code.name.lower().replace("_", " "),
        code=code,
        reason=reason,
        path=path,
        metadata=metadata,
        retry_after=retry_after,
        request_id=request_id,
    )


def _details(call: _FailedCall) -> status_pb2.Status:
    for key, value in cast(tuple[tuple[str, bytes], ...], call.trailing_metadata() or ()):
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # A proxy's details are no reason to hide the status itself.
                break
    return status_pb2.Status()


def _unpack(packed: Any, cls: type[M]) -> M | None:
    """`packed` as `cls`, or None if it is something else."""
    message = cls()
    return message if packed.Unpack(message) else None


@contextmanager
def at_item(first: int | None) -> Iterator[None]:
    """Counts the prompt or text that an error names in the caller's list, of which the call
    inside holds those from `first` on; None is a caller who gave one prompt."""
    try:
        yield
    except ActserveError as error:
        count_from(error, first)
        raise


def count_from(error: ActserveError, first: int | None) -> None:
    """The same for an error that is not raised."""
    error.path = _counted(error.path, first)
    if item := error.metadata.get(_ITEM_KEY):
        error.metadata[_ITEM_KEY] = format_path(_counted(parse_path(item), first))


def _counted(path: FieldPath, first: int | None) -> FieldPath:
    match path:
        case ("items", int(index), "prompt", *rest) | ("items", int(index), *rest):
            return ("prompt", *rest) if first is None else ("prompts", first + index, *rest)
        case ("texts", int(index), *rest) if first is not None:
            return ("texts", first + index, *rest)
        case ("prompt", *rest) if first is not None:
            return ("prompts", first, *rest)
        case _:
            return path
