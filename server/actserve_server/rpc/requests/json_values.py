"""JSON of a conversation from the wire, bounded: tools, arguments of calls, template arguments.

JSON is text on the wire where a model is to see the keys in their order and 1 apart from 1.0, and a
`Struct` where a program reads it. Both become plain Python values for the chat template. Text has
to be standard JSON with every key once, since what several readers would read several ways is no
definition.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from google.protobuf import struct_pb2

from actserve_server.domain.errors import ActserveError, FieldPath, Reason

MAX_BYTES = 256 << 10
"""Of the JSON of one conversation."""

MAX_VALUES = 10_000
"""In the JSON of one conversation: objects, lists, texts, numbers, truths and nulls."""

MAX_DEPTH = 24
"""Of objects and lists in each other."""

MAX_INTEGER = 1 << 53
"""Up to here a double holds every integer."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonReader:
    """Reads the JSON of one conversation, and refuses it once it is too much."""

    def __init__(self) -> None:
        self._bytes = 0
        self._values = 0

    def object(self, text: str, field: FieldPath) -> dict[str, Any]:
        """The object that a JSON text is."""
        self._charge_bytes(len(text.encode()), field)
        try:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except RecursionError:
            raise _too_deep(field) from None
        except ValueError as error:
            raise _invalid(f"this is no JSON: {error}; send a JSON object", field) from None
        if not isinstance(value, dict):
            raise _invalid("the JSON is no object; send one, in braces", field)
        self._check(value, field)
        return value

    def struct(self, wire: struct_pb2.Struct, field: FieldPath) -> dict[str, Any]:
        """The values of a Struct by name."""
        self._charge_bytes(wire.ByteSize(), field)
        values = {name: _plain(wire.fields[name], (*field, name)) for name in sorted(wire.fields)}
        for name, value in values.items():
            self._check(value, (*field, name))
        return values

    def _charge_bytes(self, count: int, field: FieldPath) -> None:
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"with this the conversation has {self._bytes} bytes of JSON in its tools and "
                f"arguments, above the limit of {MAX_BYTES}; shorten them",
                field=field,
                metadata={"bytes": self._bytes, "limit": MAX_BYTES},
            )

    def _check(self, value: Any, field: FieldPath) -> None:
        """Raises on a value that no template could be given, or that is one too many."""
        level, depth = [value], 0
        while level:
            depth += 1
            self._values += len(level)
            if self._values > MAX_VALUES:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"with this the conversation has more than {MAX_VALUES} JSON values in its "
                    "tools and arguments, the most that this server takes; send fewer",
                    field=field,
                    metadata={"limit": MAX_VALUES},
                )
            for each in level:
                _check_one(each, field)
                if depth > MAX_DEPTH and isinstance(each, dict | list):
                    raise _too_deep(field)
            level = [inner for each in level for inner in _inside(each)]


def _plain(wire: struct_pb2.Value, field: FieldPath) -> Any:
    # Protocol Buffers parses no message nested more than 100 deep, so neither does this go deeper.
    match wire.WhichOneof("kind"):
        case "null_value":
            return None
        case "bool_value":
            return wire.bool_value
        case "string_value":
            return wire.string_value
        case "number_value":
            number = wire.number_value
            return int(number) if number.is_integer() and abs(number) <= MAX_INTEGER else number
        case "list_value":
            return [_plain(item, field) for item in wire.list_value.values]
        case "struct_value":
            fields = wire.struct_value.fields
            return {name: _plain(fields[name], field) for name in sorted(fields)}
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "a value has no kind that this server knows; set one, null if it is to be none",
                field=field,
            )


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _check_one(value: Any, field: FieldPath) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(f"the number {value} is not finite; send one that is", field)
    for text in value if isinstance(value, dict) else [value]:
        if isinstance(text, str) and _SURROGATE.search(text):
            raise _invalid("a text holds half of a surrogate pair; send whole characters", field)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _too_deep(field: FieldPath) -> ActserveError:
    return ActserveError(
        Reason.FIELD_INVALID,
        f"objects and lists are nested more than {MAX_DEPTH} deep; send flatter ones",
        field=field,
        metadata={"limit": MAX_DEPTH},
    )


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
