"""The reference of the wire contract: a page for each proto of `proto/actserve/v1`.

All of it comes from the descriptors and their comments, as buf compiles them.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2

from scripts.docs.markdown import definition, escaped, outside_code, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "actserve.v1"

Field = descriptor_pb2.FieldDescriptorProto
Place = tuple[int, ...]
"""Where a declaration is in its file: the numbers of the fields of the descriptors that hold it,
each followed by its index, as `SourceCodeInfo.Location.path` has it."""

_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # Of a file.
_FIELDS, _ONEOFS = 2, 8  # Of a message.
_VALUES, _METHODS = 2, 2  # Of an enum; of a service.

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in Field.Type.items()
    if number not in (Field.TYPE_MESSAGE, Field.TYPE_ENUM, Field.TYPE_GROUP)
}
_BEHAVIOR: Any = field_behavior_pb2.field_behavior

_INTRODUCTION = f"""\
# The wire contract

The package `{PACKAGE}`, as `proto/` declares it. The comments are those of the protos.
[How the contract is kept usable and stable](../../design/contract.md) says what was decided, and
[versioning](../../versioning.md) what may change.

What is declared and not served answers every call with `FEATURE_NOT_SERVED`.
"""
_INTRODUCTION_OF_SHARED = """\
Messages that several services share:
"""


@dataclass(frozen=True)
class Proto:
    """A file of the contract, and the comment at each place of it."""

    file: descriptor_pb2.FileDescriptorProto
    comments: dict[Place, str]

    @property
    def name(self) -> str:
        """Without folder and extension, such as `readout`."""
        return Path(self.file.name).stem


def protos() -> list[Proto]:
    """The files of the contract in the order of their names, as buf compiles them."""
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "build", str(ROOT), "--exclude-imports", "-o", "-"]
    image = subprocess.run(command, check=True, capture_output=True).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(image).file
    return sorted(
        (Proto(file, _comments(file)) for file in files if file.package == PACKAGE),
        key=lambda proto: proto.name,
    )


def pages() -> dict[str, str]:
    """The text of each page by its name; `index` lists the services and the other files."""
    files = protos()
    homes = {
        declared.name: proto.name
        for proto in files
        for declared in (*proto.file.message_type, *proto.file.enum_type)
    }
    return {"index": _index(files)} | {proto.name: _Page(proto, homes).text() for proto in files}


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[Place, str]:
    return {
        tuple(location.path): re.sub(r"(?m)^ ", "", location.leading_comments).strip()
        for location in file.source_code_info.location
    }


def _index(files: list[Proto]) -> str:
    rows = [
        (
            f"[{service.name}]({proto.name}.md)",
            ", ".join(f"[{rpc.name}]({proto.name}.md#{rpc.name})" for rpc in service.method),
        )
        for proto in files
        for service in proto.file.service
    ]
    shared = [f"- [{proto.name}]({proto.name}.md)" for proto in files if not proto.file.service]
    services = table("service", "methods", rows=rows)
    return "\n".join([_INTRODUCTION, services, _INTRODUCTION_OF_SHARED, *shared, ""])


@dataclass(frozen=True)
class _Page:
    proto: Proto
    homes: dict[str, str]
    """The name of the page of every message and enum."""

    def text(self) -> str:
        file = self.proto.file
        parts = [f"# {self.proto.name}\n", f"`{file.name}`\n"]
        for index, service in enumerate(file.service):
            parts += self._service(service, (_SERVICES, index))
        for index, message in enumerate(file.message_type):
            parts += self._message(message, (_MESSAGES, index))
        for index, enum in enumerate(file.enum_type):
            parts += self._enum(enum, (_ENUMS, index))
        return "\n".join(parts)

    def _service(self, service: descriptor_pb2.ServiceDescriptorProto, at: Place) -> Iterator[str]:
        yield f"## {service.name} {{ #{service.name} }}\n"
        yield self._comment(at)
        for index, rpc in enumerate(service.method):
            asks, answers = self._link(rpc.input_type), self._link(rpc.output_type)
            stream = "a stream of " if rpc.server_streaming else ""
            no_effects = rpc.options.idempotency_level == rpc.options.NO_SIDE_EFFECTS
            yield f"### {rpc.name} {{ #{rpc.name} }}\n"
            yield f"{asks} → {stream}{answers}{' · no side effects' if no_effects else ''}\n"
            yield self._comment((*at, _METHODS, index))

    def _message(self, message: descriptor_pb2.DescriptorProto, at: Place) -> Iterator[str]:
        maps = {each.name: each for each in message.nested_type if each.options.map_entry}
        if message.enum_type or len(maps) < len(message.nested_type):
            raise ValueError(f"{message.name} holds other declarations, which no page shows yet")
        yield f"## {message.name} {{ #{message.name} }}\n"
        yield self._comment(at)
        group = None
        for index, field in enumerate(message.field):
            inside = field.oneof_index if _in_oneof(field) else None
            if inside is not None and inside != group:
                about = self._comment((*at, _ONEOFS, inside)).strip()
                yield f"*One of `{message.oneof_decl[inside].name}`.* {about}\n"
            group = inside
            entry = maps.get(field.type_name.rpartition(".")[2])
            declared = self._map(entry) if entry else self._declared(field)
            choice = "" if inside is None else f" · one of `{message.oneof_decl[inside].name}`"
            yield f"**`{field.name}`** {declared}{choice}"
            yield definition(self._comment((*at, _FIELDS, index)))

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto, at: Place) -> Iterator[str]:
        yield f"## {enum.name} {{ #{enum.name} }}\n"
        yield self._comment(at)
        for index, value in enumerate(enum.value):
            yield f"**`{value.name}`** = {value.number}"
            yield definition(self._comment((*at, _VALUES, index)))

    def _map(self, entry: descriptor_pb2.DescriptorProto) -> str:
        key, value = map(self._type, entry.field)
        return f"map of {key} to {value}"

    def _type(self, field: Field) -> str:
        return self._link(field.type_name) if field.type_name else _SCALARS[field.type]

    def _declared(self, field: Field) -> str:
        """How a field is declared, with a link to the page of its type."""
        words = []
        if field.label == Field.LABEL_REPEATED:
            words.append("repeated")
        elif field.proto3_optional:
            words.append("optional")
        words.append(self._type(field))
        required = field_behavior_pb2.REQUIRED in field.options.Extensions[_BEHAVIOR]
        return " ".join(words) + (" · required" if required else "")

    def _link(self, full_name: str) -> str:
        name = full_name.removeprefix(f".{PACKAGE}.")
        home = self.homes.get(name)
        return f"[{name}]({home}.md#{name})" if home else name.removeprefix(".")

    def _comment(self, at: Place) -> str:
        """The comment there, with links to what it names: `Nla.site`, `VectorSource`."""
        text = escaped(self.proto.comments.get(at, ""))
        return outside_code(lambda part: re.sub(_NAMED, self._named, part), text) + "\n"

    def _named(self, found: re.Match[str]) -> str:
        home = self.homes.get(found["type"])
        # One word, such as Model or Site, may be meant as a word.
        is_name = found["field"] or len(re.findall("[A-Z]", found["type"])) > 1
        return f"[{found[0]}]({home}.md#{found['type']})" if home and is_name else found[0]


_NAMED = re.compile(r"\b(?P<type>[A-Z][A-Za-z]+)(?P<field>\.[a-z](?:[a-z0-9]|\\_)*)?")


def _in_oneof(field: Field) -> bool:
    return field.HasField("oneof_index") and not field.proto3_optional
