"""The contract's messages in the JSON that a caller has sent: made of it, and found again in it, so
that an error names a place that the caller has written."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, FieldPath, Reason

M = TypeVar("M", bound=Message)
Descriptor: TypeAlias = Any
"""Of a message. Protocol Buffers has two classes of them."""

_FAULTS = (json_format.ParseError, TypeError, ValueError, RecursionError)


def parsed(value: Any, message: M, field: FieldPath) -> M:
    """The message that `value` is the JSON of. Raises FIELD_INVALID with the place of what is
    wrong, within `field`."""
    try:
        if isinstance(value, dict):
            return json_format.ParseDict(value, message)
    except _FAULTS as error:
        raise _fault(value, message.DESCRIPTOR, field, error) from None
    raise _no_object(value, message.DESCRIPTOR, field)


def as_written(field: FieldPath, value: Any) -> FieldPath:
    """A path by the contract's names, as the JSON that it leads through has it: fields may be in
    camel case too. Where it has nothing more, the names are the contract's."""
    found: list[str | int] = []
    for step in field:
        if isinstance(step, str) and isinstance(value, Mapping):
            camel = _camel(step)
            step = camel if step not in value and camel in value else step
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, Sequence) and step < len(value):
            value = value[step]
        else:
            value = None
        found.append(step)
    return tuple(found)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(each.capitalize() for each in rest)


def _fault(
    value: Mapping[str, Any], kind: Descriptor, field: FieldPath, error: Exception
) -> ActserveError:
    """What is wrong with an object: with the first of its fields that alone is none, else with all
    of them together."""
    for name, inner in value.items():
        alone = _failure({name: inner}, kind)
        if alone is None:
            continue
        where, known = (*field, str(name)[:100]), _field(kind, name)
        if known is None:
            names = ", ".join(each.name for each in kind.fields)
            return _invalid(f"a message {kind.name} has no such field; it has {names}", where)
        if known.message_type is None or _is_special(known.message_type):
            return _invalid(str(alone).rstrip(".")[:300], where)
        if not known.is_repeated:
            return _fault_within(inner, known.message_type, where, alone)
        if not isinstance(inner, list):
            return _invalid("this is no list; send one", where)
        for index, each in enumerate(inner):
            if (failure := _failure({name: [each]}, kind)) is not None:
                return _fault_within(each, known.message_type, (*where, index), failure)
    return _invalid(str(error).rstrip(".")[:300], field)


def _fault_within(
    value: Any, kind: Descriptor, field: FieldPath, error: Exception
) -> ActserveError:
    if isinstance(value, dict):
        return _fault(value, kind, field, error)
    return _no_object(value, kind, field)


def _failure(value: Mapping[str, Any], kind: Descriptor) -> Exception | None:
    try:
        json_format.ParseDict(dict(value), message_factory.GetMessageClass(kind)())
    except _FAULTS as error:
        return error
    return None


def _field(kind: Descriptor, name: str) -> FieldDescriptor | None:
    return kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)


def _is_special(kind: Descriptor) -> bool:
    """Whether its JSON is another than that of its fields."""
    return kind.full_name.startswith("google.protobuf.") or kind.GetOptions().map_entry


def _no_object(value: Any, kind: Descriptor, field: FieldPath) -> ActserveError:
    what = f"send the JSON of a message {kind.name}"
    meant = _field(kind, value) if isinstance(value, str) else None
    if meant is not None and meant.message_type is not None and not meant.is_repeated:
        what += f', such as {{"{meant.name}": {{}}}}'
    shown = f"{value[:100]!r}" if isinstance(value, str) else "this"
    return _invalid(f"{shown} is no object; {what}", field)


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
