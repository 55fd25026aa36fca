"""Ids that callers give their requests, so that one made again finds what it has kept."""

import hashlib

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.engine.fair_threads import off_loop

MAX_BYTES = 128
"""Of a request id, in UTF-8."""

Request = pb.FetchActivationsRequest | pb.GenerateRequest


async def request_digest(wire: Request, field: FieldPath) -> bytes | None:
    """The same for equal requests of an id, and for no others; None without an id or without
    anything to keep."""
    size = len(wire.request_id.encode())
    if size > MAX_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"request_id has {size} bytes; use at most {MAX_BYTES}, such as a UUID",
            field=field,
            metadata={"bytes": size, "limit": MAX_BYTES},
        )
    if not size or not any(each.HasField("keep") for each in wire.readouts):
        return None
    # In a thread: a request may be tens of megabytes.
    return await off_loop(_digest, wire)


def _digest(wire: Request) -> bytes:
    return hashlib.sha256(wire.SerializeToString(deterministic=True)).digest()
