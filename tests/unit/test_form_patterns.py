"""Sizes of the regular expressions that the output may be held to."""

import json

import pytest

from actserve_server.openai import form_patterns


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{1,3000}", 3000),
        ("a{3000}", 3000),
        ("a{ 2 , 30 }", 30),
        ("ab{4}c", 6),
        ("[a-z]{3,8}", 8),
        (r"[\]}]{8}", 8),
        (r"\d{3}-\d{4}", 8),
        ("(ab){3}", 9),
        ("((a{9}){9}){9}", 819),
        ("a{2}{3}", 6),
        ("a{0,0000000003000}", 3000),
        ("a{" + "9" * 5000 + "}", 1 << 20),
        ("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 41),
        (r"\{9}", 3),
        ("((((", 4),
        ("a)b", 3),
    ],
)
def test_repetitions_are_written_out(pattern: str, size: int) -> None:
    assert form_patterns.size(pattern) == size


def test_patterns_are_found_wherever_a_form_may_have_them() -> None:
    schema = {"properties": {"a": {"pattern": "1"}}, "patternProperties": {"2": {"pattern": "3"}}}
    inside = {"structures": [{"schema": json.dumps({"items": {"pattern": "4"}})}]}
    form = [{"function": {"parameters": schema}}, {"structural_tag": json.dumps(inside)}]
    assert sorted(form_patterns.patterns(form)) == ["1", "2", "3", "4"]
    assert list(form_patterns.patterns(["{", "{{", 1, None])) == []
