"""Request sizes: a message that the server would not take is refused before it is sent, since gRPC
says of it only that it is too large."""

from actserve.errors import ResourceExhausted
from actserve.v1 import model_service_pb2 as pb

LARGE = 1 << 20
"""Bytes from which on a request is checked; no server that is of use takes less."""


def check_size(size: int, model: pb.Model | None) -> None:
    """Raises `ResourceExhausted` for a request of more bytes than the server of the model takes;
    None is a model that only the server knows."""
    limit = model.limits.max_request_bytes if model else 0
    if limit and size > limit:
        raise ResourceExhausted(
            f"the request has {size} bytes, and the server takes {limit} (max_request_bytes); send "
            "fewer prompts, vectors or directions in one call, or name rows that the server keeps",
            reason="MESSAGE_TOO_LARGE",
            metadata={"bytes": str(size), "limit": str(limit)},
        )
