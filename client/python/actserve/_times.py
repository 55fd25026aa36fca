"""Times as the contract writes them."""

from datetime import datetime, timezone

from google.protobuf.timestamp_pb2 import Timestamp

from actserve.errors import BadResponse


def time_from_proto(time: Timestamp) -> datetime:
    """A time in UTC. Raises `BadResponse` for what is none."""
    try:
        return time.ToDatetime(timezone.utc)
    except (ValueError, OverflowError):
        raise BadResponse(
            f"the server sent a time of {time.seconds} s and {time.nanos} ns since 1970, which is "
            "none"
        ) from None
