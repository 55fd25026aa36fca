"""The names of the contract are usable in every language that clients are generated for."""

import importlib
import keyword
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import actserve.v1

PROTOS = Path(__file__).resolve().parents[2] / "proto" / "actserve" / "v1"

RESERVED = {
    "Python": " ".join([*keyword.kwlist, *keyword.softkwlist]),
    "Go": """
        break case chan const continue default defer else fallthrough for func go goto if import
        interface map package range return select struct switch type var""",
    "TypeScript": """
        any arguments as async await boolean break case catch class const constructor continue
        debugger declare default delete do else enum eval export extends false finally for from
        function get if implements import in instanceof interface let module namespace never new
        null number object of package private protected prototype public require return set static
        string super switch symbol this throw true try type typeof undefined unknown var void while
        with yield""",
    "Rust": """
        abstract as async await become box break const continue crate do dyn else enum extern false
        final fn for gen if impl in let loop macro match mod move mut override priv pub ref return
        self static struct super trait true try type typeof unsafe unsized use virtual where while
        yield""",
    "Java": """
        abstract assert boolean break byte case catch char class const continue default do double
        else enum extends false final finally float for goto if implements import instanceof int
        interface long native new null package private protected public return short static
        strictfp super switch synchronized this throw throws transient true try void volatile
        while""",
}

METHODS = {
    "Go": "reset string proto_message proto_reflect descriptor marshal unmarshal",
    "Java": """
        all_fields class default_instance_for_type descriptor descriptor_for_type
        initialization_error_string parser_for_type serialized_size unknown_fields""",
    "TypeScript": "to_string to_json value_of type_name",
}
"""Of every generated message, in the case of fields, which would get another name beside them."""

JAVA_SUFFIXES = ["_builder", "_builder_list", "_bytes", "_count", "_list", "_map", "_or_builder"]
"""Of the methods that Java makes for a field."""

FILES = [
    importlib.import_module(f"actserve.v1.{module.name}").DESCRIPTOR
    for module in pkgutil.iter_modules(actserve.v1.__path__)
    if module.name.endswith("_pb2")
]
MESSAGES = [message for file in FILES for message in file.message_types_by_name.values()]
ENUMS = [enum for file in FILES for enum in file.enum_types_by_name.values()]
SERVICES = [service for file in FILES for service in file.services_by_name.values()]


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def short(enum: Any, value: Any) -> str:
    """The name of a value where a language takes the enum's off, as Rust and TypeScript do."""
    return value.name.removeprefix(f"{snake(enum.name).upper()}_")


def names() -> Iterator[tuple[str, str]]:
    """Where each name is, and the name."""
    for each in [*MESSAGES, *ENUMS, *SERVICES]:
        yield each.full_name, each.name
    for message in MESSAGES:
        for part in [*message.fields, *message.oneofs]:
            yield part.full_name, part.name
    for service in SERVICES:
        for method in service.methods:
            yield method.full_name, method.name
    for enum in ENUMS:
        for value in enum.values:
            yield f"{enum.full_name}.{value.name}", short(enum, value)


def squashed(name: str) -> str:
    """A name without what generators change: its case and its underscores."""
    return name.replace("_", "").lower()


def twice(found: list[str]) -> set[str]:
    return {name for name in found if list(map(squashed, found)).count(squashed(name)) > 1}


@pytest.mark.parametrize("language", RESERVED)
def test_no_name_is_a_reserved_word(language: str) -> None:
    reserved = {squashed(word) for word in RESERVED[language].split()}
    assert [where for where, name in names() if squashed(name) in reserved] == []


@pytest.mark.parametrize("language", METHODS)
def test_no_field_is_named_as_a_method_of_every_message(language: str) -> None:
    taken = {squashed(name) for name in METHODS[language].split()}
    fields = [field for message in MESSAGES for field in message.fields]
    assert [field.full_name for field in fields if squashed(field.name) in taken] == []


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_the_fields_of_a_message_stay_apart_whatever_their_case(message: Any) -> None:
    fields = [field.name for field in message.fields]
    made = [f"{field}{suffix}" for field in fields for suffix in JAVA_SUFFIXES]
    assert twice(fields + [oneof.name for oneof in message.oneofs if len(oneof.fields) > 1]) == (
        set()
    )
    assert set(map(squashed, fields)).isdisjoint(map(squashed, made))


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_the_values_of_an_enum_stay_apart_without_its_name(enum: Any) -> None:
    values = [short(enum, value) for value in enum.values]
    assert twice(values) == set()
    assert all(re.fullmatch("[A-Z][A-Z0-9_]*", value) for value in values)


def test_the_types_stay_apart_from_each_other_and_from_javas_classes_of_files() -> None:
    types = [each.name for each in [*MESSAGES, *ENUMS, *SERVICES]]
    assert twice(types) == set()
    for file in FILES:
        outer = file.name.rpartition("/")[2].removesuffix(".proto").replace("_", "")
        # Java itself gets out of the way of a type of the same file, and of no other's.
        own = {*file.message_types_by_name, *file.enum_types_by_name, *file.services_by_name}
        assert outer not in {name.lower() for name in types if name not in own}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_says_where_go_and_java_find_it(file: Any) -> None:
    options = file.GetOptions()
    assert (options.go_package, options.java_package, options.java_multiple_files) == (
        "github.com/actserve/actserve/client/go/actserve/v1;actservev1",
        "dev.actserve.v1",
        True,
    )


def test_a_number_of_64_bits_says_why() -> None:
    """TypeScript reads one as a BigInt, which does not mix with other numbers."""
    text = "\n".join(path.read_text() for path in PROTOS.glob("*.proto"))
    comments = "(?P<comments>(?: *//.*\n)*)"
    silent = []
    for message in MESSAGES:
        whole = re.search(
            rf"{comments}message {message.name} {{\n(?P<body>(?:  .*\n|\n)*)}}\n", text
        )
        for field in message.fields:
            if whole and field.type in (field.TYPE_INT64, field.TYPE_UINT64):
                own = re.search(
                    rf"{comments} *(?:optional |repeated )?u?int64 {field.name} =", whole["body"]
                )
                if not own or "64 bits" not in whole["comments"] + own["comments"]:
                    silent.append(field.full_name)
    assert silent == []
