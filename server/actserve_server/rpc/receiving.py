"""Reads the one message of a call."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.unknown_fields import refuse_unknown_fields


async def receive(
    context: "grpc.aio.ServicerContext[Any, Any]", parse: Callable[[bytes], Message]
) -> Message:
    """The request of a call. Raises REQUEST_MALFORMED or FIELD_UNKNOWN."""
    data = await context.read()
    if data is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
        raise ActserveError(Reason.REQUEST_MALFORMED, "the call carries no message; send one")
    try:
        request = parse(data)
    except DecodeError:
        raise ActserveError(
            Reason.REQUEST_MALFORMED,
            f"the request's {len(data)} bytes are not the Protocol Buffers message of this "
            "method; use a client generated from the served contract",
        ) from None
    refuse_unknown_fields(request)
    return request
