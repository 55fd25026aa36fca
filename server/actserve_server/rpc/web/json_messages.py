"""Messages as JSON, in the form that protobuf defines, with bounds on what is read.

What comes as JSON goes on as the bytes of the message, and is then looked at as any other. JSON
takes longer to read than those, and cannot be looked at before it is parsed, so that it may be
smaller only.
"""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.transport.request_messages import MAX_PARTS

MAX_JSON_BYTES = 1 << 20
"""Of a request. One of so many takes up to 20 ms to parse, in which nothing else runs."""


def from_json(data: bytes, kind: type[Message]) -> bytes:
    """The bytes of the message that `data` is the JSON of. Raises MESSAGE_TOO_LARGE,
    TOO_MANY_PARTS, FIELD_UNKNOWN or REQUEST_MALFORMED."""
    if len(data) > MAX_JSON_BYTES:
        raise ActserveError(
            Reason.MESSAGE_TOO_LARGE,
            f"the request is {len(data)} bytes of JSON, and at most {MAX_JSON_BYTES} are taken; "
            "send it as binary (application/proto), or in several calls",
            metadata={"bytes": len(data), "limit": MAX_JSON_BYTES},
        )
    try:
        value = json.loads(data, object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise _malformed("it is no object")
        _check_parts(value)
        _check_texts(value)
        return json_format.ParseDict(value, kind()).SerializeToString()
    except json_format.ParseError as error:
        raise _refused(str(error)) from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise _malformed(f"{type(error).__name__}") from None


def to_json(message: Message) -> bytes:
    """The JSON of a message."""
    return json_format.MessageToJson(message, indent=None).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One that has a key twice is refused, since readers differ on which value
    counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise json_format.ParseError("an object has a key twice")
    return found


def _check_parts(value: Any) -> None:
    count, left = 0, [value]
    while left:
        item = left.pop()
        inside = item.values() if isinstance(item, dict) else item
        if isinstance(item, dict | list):
            count += len(inside)
            left += inside
        if count > MAX_PARTS:
            raise ActserveError(
                Reason.TOO_MANY_PARTS,
                f"the request has more than {MAX_PARTS} fields and list items in it, the most that "
                "this server takes at once; make several calls",
                metadata={"limit": MAX_PARTS},
            )


def _check_texts(value: Any) -> None:
    """Raises ValueError for half of a surrogate pair, which JSON may hold and no message: protobuf
    fails on it in its own way, and what quotes it could not be sent."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, dict):
            left += (*item.keys(), *item.values())
        elif isinstance(item, list):
            left += item


def _refused(said: str) -> ActserveError:
    if "has no field named" in said:
        what, _, _ = said.partition(".\n")  # Then all fields are listed that there are.
        return ActserveError(
            Reason.FIELD_UNKNOWN,
            f"the request cannot be read: {what}; upgrade the server, or leave the field out",
        )
    return _malformed(said)


def _malformed(why: str) -> ActserveError:
    return ActserveError(
        Reason.REQUEST_MALFORMED,
        f"the request is not the JSON form of this method's message: {why}; write it as protobuf's "
        "JSON mapping has it",
    )
