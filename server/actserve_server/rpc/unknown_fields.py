"""Refuses requests that hold fields this server does not know.

Protocol Buffers would drop them silently. Here that could mean an intervention, or part of one,
that a newer client asked for and that nobody applied.
"""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from actserve_server.domain.errors import ActserveError, Reason


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Raises FIELD_UNKNOWN if `message` or one inside it holds a field of a newer contract."""
    for unknown in UnknownFieldSet(message):
        raise ActserveError(
            Reason.FIELD_UNKNOWN,
            f"{path or 'the request'} has field number {unknown.field_number}, which "
            f"{message.DESCRIPTOR.full_name} of this server does not know; upgrade the server, or "
            "leave the field unset",
            field=path or None,
            metadata={"field_number": unknown.field_number},
        )
    for descriptor, value in message.ListFields():
        if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        name = f"{path}.{descriptor.name}" if path else descriptor.name
        if isinstance(value, Message):
            refuse_unknown_fields(value, name)
        else:
            for index, item in enumerate(value):
                refuse_unknown_fields(item, f"{name}[{index}]")
