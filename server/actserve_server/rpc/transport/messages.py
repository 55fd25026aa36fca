"""What is inside a message."""

from collections.abc import Iterator
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from actserve_server.domain.errors import FieldPath


def inside(message: Message, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Message]]:
    """Every message directly in a message, with its path. What a map holds has the path of the map,
    whose keys are the caller's."""
    for field, is_map in _of_messages(message.DESCRIPTOR):
        if not is_set(message, field):
            continue
        value, at = getattr(message, field.name), (*path, field.name)
        if is_map:
            yield from ((at, item) for item in value.values() if isinstance(item, Message))
        elif isinstance(value, Message):
            yield at, value
        else:
            yield from (((*at, index), item) for index, item in enumerate(value))


def is_set(message: Message, field: FieldDescriptor) -> bool:
    """Whether a message holds a field. Unlike `ListFields` it looks at no other, each of which
    would be copied, such as a tensor or a long text."""
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name))


@lru_cache(maxsize=1024)
def _of_messages(kind: Descriptor) -> tuple[tuple[FieldDescriptor, bool], ...]:
    """The fields of such a message that hold messages, and whether each is a map."""
    return tuple(
        (field, field.message_type.GetOptions().map_entry)
        for field in kind.fields
        if field.message_type
    )
