"""Requests that are made up from the descriptors of the contract, so that a new field or a new
method is tried by itself.

What must be set mostly is, numbers and names are mostly such as mean something, and tensors mostly
hold together: else no request would come further than the first check.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from actserve.v1 import tensor_pb2
from tests.contract.refusals import WIDTH

MAX_DEPTH = 7
MANY = 60
"""Items of a list that is long for once."""
TEXTS = ("", "a", "hello", "the capital of", "é\U0001f600", "\0", "-", "a/b", "%_\\", "x" * 700)
IDS = ("", "a", "mine", "b-1", "A", "-", "a" * 63, "a" * 64)
MODELS = ("", "models/fake", "models/-", "models/none", "models/")
FLOATS = (0.0, 1.0, -1.0, 0.5, 0.25, 2.0, -0.0, 1e-45, 1e-300, 3e38, 1e308, math.inf, math.nan)
SHAPES = ((WIDTH,), (1, WIDTH), (2, WIDTH), (5, WIDTH), (24, WIDTH), (24,), (WIDTH, WIDTH))
ODD_SHAPES = (
    (),
    (0,),
    (0, WIDTH),
    (WIDTH, 0),
    (1 << 31, 1 << 31),
    (1, 1, 1),
    (3, 7),
    ((1 << 32) - 1,),
)
WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}

Names = Mapping[str, Sequence[str]]
"""What is there, by the kind of thing: also other tenants' things, and what never was."""


class Requests:
    """Makes requests up, by one source of chance."""

    def __init__(self, random: Random, names: Names) -> None:
        self._random = random
        self._names = names
        self._every_name = [each for some in names.values() for each in some]

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message of that kind."""
        if kind is tensor_pb2.Tensor.DESCRIPTOR:
            return self._tensor()
        made = message_factory.GetMessageClass(kind)()
        wanted = [field for field in kind.fields if self._is_wanted(field, depth)]
        wanted += [
            self._random.choice(oneof.fields)
            for oneof in kind.oneofs
            if len(oneof.fields) > 1 and self._often(0.9)
        ]
        for field in wanted:
            self._set(made, field, depth)
        return made

    def cut(self, data: bytes) -> bytes:
        """Bytes that are no message any more, or another one."""
        random = self._random
        if not data or self._often(0.3):
            return random.randbytes(random.randrange(40))
        at = random.randrange(len(data))
        match random.randrange(4):
            case 0:
                return data[:at]
            case 1:
                return data[:at] + random.randbytes(1) + data[at + 1 :]
            case 2:
                return data[:at] + random.randbytes(random.randrange(9)) + data[at:]
            case _:
                return data + data[at:]

    def as_json(self, message: Message) -> bytes:
        """Its JSON, in which something may be of another kind."""
        try:
            value = json_format.MessageToDict(message)
        except json_format.SerializeToJsonError:  # A time beyond all years has no JSON.
            value = {}
        if self._often(0.5):
            self._spoil(value)
        text = json.dumps(value)
        return (text[: self._random.randrange(len(text))] if self._often(0.05) else text).encode()

    def _spoil(self, value: Any) -> None:
        odd = (None, True, -1, 1e400, "NaN", "", "\ud800", [], {}, [[]], "1" * 5000, 1 << 70)
        while value:
            at = self._random.choice([*value] if isinstance(value, dict) else range(len(value)))
            inside = value[at]
            if isinstance(inside, dict | list) and inside and self._often(0.7):
                value = inside
                continue
            value[at] = self._random.choice(odd)
            return

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _is_wanted(self, field: FieldDescriptor, depth: int) -> bool:
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            return False
        if depth >= MAX_DEPTH and field.message_type is not None:
            return False
        options: Any = field.GetOptions()
        behaviors = options.Extensions[field_behavior_pb2.field_behavior]
        return self._often(0.97 if field_behavior_pb2.REQUIRED in behaviors else 0.12)

    def _set(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            target = getattr(made, field.name)
            for _ in range(self._random.randrange(3)):
                if value.message_type is None:
                    target[self._value(key, depth)] = self._value(value, depth)
                else:
                    target[self._value(key, depth)].CopyFrom(
                        self.message(value.message_type, depth + 1)
                    )
            return
        if not field.is_repeated:
            value = self._value(field, depth)
            if field.message_type is None:
                setattr(made, field.name, value)
            else:
                getattr(made, field.name).CopyFrom(value)
            return
        count = self._random.choice((1, 1, 1, 2, 2, 3, 0))
        values = [self._value(field, depth) for _ in range(count)]
        if self._often(0.03):
            values *= MANY
        getattr(made, field.name).extend(values)

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        random = self._random
        if field.message_type is not None:
            return self.message(field.message_type, depth + 1)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._often(0.5)
            case FieldDescriptor.CPPTYPE_ENUM:
                assert field.enum_type is not None
                numbers = [each.number for each in field.enum_type.values]
                return random.choice(numbers[1:] or numbers) if self._often(0.95) else 99
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return random.choice(FLOATS[:6] if self._often(0.8) else FLOATS)
            case FieldDescriptor.CPPTYPE_STRING:
                if field.type == FieldDescriptor.TYPE_BYTES:
                    return random.choice((b"", b"abcd", random.randbytes(random.randrange(70))))
                return self._text(field.name)
            case _:
                return self._whole(*WHOLE[field.cpp_type])

    def _whole(self, least: int, most: int) -> int:
        if self._often(0.75):
            return self._random.randrange(5)
        if self._often(0.6):
            return max(least, self._random.randrange(-20, 1000))
        return self._random.choice((least, most, 1 << 16, 1 << 24, most - 1))

    def _text(self, name: str) -> str:
        random = self._random
        choices: Callable[[], Sequence[str]] = lambda: TEXTS  # noqa: E731
        if self._often(0.1):
            return random.choice(TEXTS)
        if name == "request_id":
            return f"request-{random.randrange(1 << 30)}"
        if name == "model":
            return random.choice(MODELS[:3] if self._often(0.9) else MODELS)
        if name in ("adapter", "etag", "page_token"):
            return "" if self._often(0.8) else random.choice(("YQ==", "AAAA", "x"))
        if name.endswith("_id"):
            return random.choice(IDS)
        singular = name.removesuffix("s").removesuffix("ie")
        for kind, some in self._names.items():
            if singular in kind:
                choices = lambda some=some: some  # noqa: E731
        if name in ("name", "kept", "source", "resource"):
            choices = lambda: self._every_name  # noqa: E731
        return random.choice(choices())

    def _tensor(self) -> tensor_pb2.Tensor:
        random = self._random
        if self._often(0.04):
            element_type: Any = random.choice((0, 1, 2, 3, 99))
            return tensor_pb2.Tensor(
                element_type=element_type,
                shape=random.choice(ODD_SHAPES),
                data=random.randbytes(random.randrange(70)),
            )
        shape = random.choice(ODD_SHAPES if self._often(0.05) else SHAPES)
        count = math.prod(shape) if math.prod(shape) <= 1 << 12 else 0
        values = [float(random.randrange(-4, 5)) for _ in range(min(count, 8))] or [0.0]
        if self._often(0.1):
            values[random.randrange(len(values))] = random.choice(
                (math.nan, math.inf, 3e38, -3e38, 1e-45)
            )
        data = struct.pack(f"<{len(values)}f", *values)
        return tensor_pb2.Tensor(
            element_type=tensor_pb2.ELEMENT_TYPE_F32,
            shape=shape,
            data=(data * (count // len(values) + 1))[: 4 * count],
        )
