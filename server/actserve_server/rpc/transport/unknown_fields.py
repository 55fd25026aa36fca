"""Refuses requests that hold fields this server does not know.

Protocol Buffers would drop them silently. Here that could mean an intervention, or part of one,
that a newer client asked for and that nobody applied.
"""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.rpc.transport.messages import inside


def refuse_unknown_fields(message: Message, path: FieldPath = ()) -> None:
    """Raises FIELD_UNKNOWN if `message` or one inside it holds a field of a newer contract."""
    for unknown in UnknownFieldSet(message):
        raise ActserveError(
            Reason.FIELD_UNKNOWN,
            f"field number {unknown.field_number} is set, which {message.DESCRIPTOR.full_name} of "
            "this server does not know; upgrade the server, or leave the field unset",
            field=path,
            metadata={"field_number": unknown.field_number},
        )
    for at, item in inside(message, path):
        refuse_unknown_fields(item, at)
