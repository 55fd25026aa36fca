"""What is inside a message."""

from collections.abc import Iterator

from google.protobuf.message import Message

from actserve_server.domain.errors import FieldPath


def inside(message: Message, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Message]]:
    """Every message directly in a message, with its path. What a map holds has the path of the map,
    whose keys are the caller's."""
    for descriptor, value in message.ListFields():
        kind = descriptor.message_type
        if kind is None:
            continue
        at = (*path, descriptor.name)
        if kind.GetOptions().map_entry:
            yield from ((at, item) for item in value.values() if isinstance(item, Message))
        elif isinstance(value, Message):
            yield at, value
        else:
            yield from (((*at, index), item) for index, item in enumerate(value))
