"""Errors as OpenAI's API tells them: an HTTP status, and JSON that its clients read."""

import math
from collections.abc import Mapping
from typing import Any

from actserve.paths import format_path
from actserve_server.domain.errors import ActserveError, FieldPath, Kind, Reason
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call

STATUSES: Mapping[Kind, int] = {
    Kind.INVALID_ARGUMENT: 400,
    Kind.FAILED_PRECONDITION: 400,
    Kind.NOT_FOUND: 404,
    Kind.ALREADY_EXISTS: 409,
    Kind.ABORTED: 409,
    Kind.UNIMPLEMENTED: 400,  # OpenAI's clients try again after any status from 500 on.
    Kind.UNAVAILABLE: 503,
    Kind.RESOURCE_EXHAUSTED: 429,
    Kind.UNAUTHENTICATED: 401,
    Kind.PERMISSION_DENIED: 403,
    Kind.INTERNAL: 500,
}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: ActserveError) -> int:
    match error.reason:
        case Reason.MESSAGE_TOO_LARGE:
            return 413
        case Reason.QUEUE_FULL:
            return 429  # To clients of this API it is a limit, whosever it is.
        case _:
            return STATUSES[error.kind]


def content(error: ActserveError, field: FieldPath, call: Call) -> dict[str, Any]:
    """The JSON of an error, which is about `field` of the request. `code` is its reason."""
    status = status_of(error)
    where = format_path(field)
    message = statuses.bounded(error.message)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": f"{where}: {message}" if where else message,
            "type": _TYPES.get(status, kind),
            "param": where or None,
            "code": error.reason.value,
            "metadata": {key: statuses.bounded(value) for key, value in error.metadata.items()},
            "request_id": call.id,
        }
    }


def headers(error: ActserveError) -> list[tuple[bytes, bytes]]:
    """When to try again, where that helps; whole seconds, as the header counts."""
    if error.retry_after_s is None:
        return []
    return [(b"retry-after", str(math.ceil(error.retry_after_s)).encode())]
