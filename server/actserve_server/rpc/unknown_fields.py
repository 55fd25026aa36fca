"""Refuses requests that hold fields this server does not know.

Protocol Buffers would drop them silently. Here that could mean an intervention, or part of one,
that a newer client asked for and that nobody applied.
"""

from collections.abc import Mapping

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from actserve_server.domain.errors import ActserveError, FieldPath, Reason


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
    for descriptor, value in message.ListFields():
        if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if isinstance(value, Message):
            refuse_unknown_fields(value, (*path, descriptor.name))
        elif isinstance(value, Mapping):
            # Without the key, which is the caller's and no name of the contract.
            for item in value.values():
                if isinstance(item, Message):
                    refuse_unknown_fields(item, (*path, descriptor.name))
        else:
            for index, item in enumerate(value):
                refuse_unknown_fields(item, (*path, descriptor.name, index))
