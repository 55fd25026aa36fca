"""Clients of every language make the same of the same answers, their examples print the same, and
their readmes show what is run.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import pytest

from tests.conformance.drivers import LANGUAGES, ROOT, Language, printed
from tests.conformance.questions import QUESTIONS, Asked
from tests.docs.made_up import made_up_server

EXAMPLES = ("fetch", "steer", "patch", "explain")
PYTHON, *OTHERS = LANGUAGES


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with made_up_server() as address:
        yield address


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, address: str) -> tuple[str, str]:
    """The name of an example, and what it prints in Python."""
    return request.param, printed(PYTHON, request.param, address)


@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.name)
def test_an_example_prints_what_it_prints_in_python(
    language: Language, example: tuple[str, str], address: str
) -> None:
    name, expected = example
    assert expected.strip()
    assert printed(language, name, address) == expected


@pytest.fixture(scope="module")
def asked(address: str) -> Iterator[Asked]:
    asked = Asked(address)
    yield asked
    asked.close()


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.name)
def test_numbers_are_those_of_the_python_client_bit_for_bit(
    asked: Asked, language: Language, name: str
) -> None:
    assert asked.answer(language, name) == asked.answer(PYTHON, name)


_MARK = r"^[ \t]*(?:///?|#)[ \t]*"
SAMPLE = re.compile(rf"{_MARK}\[sample\]\n(.*?){_MARK}\[/sample\]", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [language.name for language in OTHERS])
def test_the_readme_shows_code_that_is_run(name: str) -> None:
    folder = ROOT / "client" / name
    sources = [
        path
        for path in folder.rglob("*")
        if path.suffix in (".go", ".ts", ".rs", ".java")
        and not {"node_modules", "target", "build", "dist"} & {*path.relative_to(folder).parts}
    ]
    samples = [
        textwrap.dedent(sample).strip()
        for path in sources
        for sample in SAMPLE.findall(path.read_text())
    ]
    assert samples, f"client/{name} has no code between [sample] and [/sample]"
    readme = (folder / "README.md").read_text()
    assert [sample for sample in samples if sample not in readme] == []
