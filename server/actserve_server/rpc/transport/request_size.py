"""How many parts a request has, told from its bytes.

Parsing makes an object of every message and number, however few bytes it has: a megabyte of empty
messages takes the interpreter a hundred times as long as a megabyte of text. So parts are counted
before anything is parsed. Counting stops at the limit, and steps over texts and the bytes of
tensors, however large they are.
"""

from collections.abc import Mapping
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from actserve_server.domain.errors import ActserveError, Reason

PACKED_BYTES = 32
"""Bytes of packed numbers that count as a part; they are parsed that much quicker."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OPAQUE = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def check_parts(data: bytes, kind: Descriptor, limit: int) -> None:
    """Raises TOO_MANY_PARTS if the bytes of a message of that kind have more than `limit` parts,
    and REQUEST_MALFORMED if they are no such message."""
    count = 0
    try:
        messages = [(0, len(data), kind)]
        while messages:
            at, end, kind = messages.pop()
            inside = _inside(kind)
            while at < end:
                count += 1
                if count > limit:
                    raise _too_many(limit)
                tag, at = _varint(data, at)
                form = tag & 7
                if form == _BYTES:
                    length, at = _varint(data, at)
                    content = inside.get(tag >> 3, _OPAQUE)
                    if isinstance(content, Descriptor):
                        messages.append((at, at + length, content))
                    elif content is None:
                        count += length // PACKED_BYTES
                    at += length
                elif form == _VARINT:
                    _, at = _varint(data, at)
                elif form in (_FIXED64, _FIXED32):
                    at += 8 if form == _FIXED64 else 4
                else:
                    raise _malformed(data)
            if at != end:
                raise _malformed(data)
    except IndexError:
        raise _malformed(data) from None
    if count > limit:
        raise _too_many(limit)


@lru_cache(maxsize=1024)
def _inside(kind: Descriptor) -> Mapping[int, Descriptor | None]:
    """By field number what a field of bytes holds: messages, or with None numbers."""
    return {field.number: field.message_type for field in kind.fields if field.type not in _OPAQUE}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while shift < 70:  # At most ten bytes.
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
    raise IndexError(at)


def _too_many(limit: int) -> ActserveError:
    return ActserveError(
        Reason.TOO_MANY_PARTS,
        f"the request has more than {limit} fields, list items and messages in it, the most that "
        "this server takes at once; make several calls",
        metadata={"limit": limit},
    )


def _malformed(data: bytes) -> ActserveError:
    return ActserveError(
        Reason.REQUEST_MALFORMED,
        f"the request's {len(data)} bytes are not the Protocol Buffers message of this method; use "
        "a client generated from the served contract",
    )
