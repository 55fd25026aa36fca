"""Paths of fields are written and read the same way."""

import pytest

from actserve.paths import FieldPath, format_path, parse_path

PATHS: dict[str, FieldPath] = {
    "": (),
    "capture": ("capture",),
    "prompts[0]": ("prompts", 0),
    "capture.sites[10].hook_point": ("capture", "sites", 10, "hook_point"),
    "interventions[2].add.vector": ("interventions", 2, "add", "vector"),
}


@pytest.mark.parametrize(("text", "path"), PATHS.items(), ids=repr)
def test_a_path_is_written_as_protocol_buffers_names_fields(text: str, path: FieldPath) -> None:
    assert format_path(path) == text
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text", ["a b", "prompts[", "prompts[-1]", "prompts[01]", "a..b", ".a", "x" * 9 + "!", "[" * 99]
)
def test_what_is_no_path_is_told_as_it_came(text: str) -> None:
    assert parse_path(text) == (text,)
    assert format_path(parse_path(text)) == text
