"""Reads the one message of a call."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc import not_served
from actserve_server.rpc.transport.request_size import check_parts
from actserve_server.rpc.transport.unknown_fields import refuse_unknown_fields

MAX_PARTS = 100_000
"""Of one request. The costliest messages of so many, empty turns or packed token ids, take 6 to 16
ms of CPU time to parse, in which nothing else runs; counting and walking let others run between."""

SMALL_BYTES = 16 << 10
"""A request up to this size is looked at on the event loop, as it cannot have parts enough to hold
it up; a larger one in a thread."""


async def receive(
    context: "grpc.aio.ServicerContext[Any, Any]",
    parse: Callable[[bytes], Message],
    kind: Descriptor,
) -> Message:
    """The request of a call. Raises REQUEST_MALFORMED, TOO_MANY_PARTS, FIELD_UNKNOWN or
    FEATURE_NOT_SERVED."""
    data = await context.read()
    if data is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
        raise ActserveError(Reason.REQUEST_MALFORMED, "the call carries no message; send one")
    if len(data) <= SMALL_BYTES:
        return _parsed(data, parse, kind)
    return await off_loop(_parsed, data, parse, kind)


def _parsed(data: bytes, parse: Callable[[bytes], Message], kind: Descriptor) -> Message:
    if len(data) > SMALL_BYTES:
        check_parts(data, kind, MAX_PARTS)
    try:
        request = parse(data)
    except DecodeError:
        raise ActserveError(
            Reason.REQUEST_MALFORMED,
            f"the request's {len(data)} bytes are not the Protocol Buffers message of this "
            "method; use a client generated from the served contract",
        ) from None
    refuse_unknown_fields(request)
    not_served.refuse_fields(request)
    return request
