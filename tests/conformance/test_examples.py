"""The examples of every language print the same, and readmes show what is run."""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.conformance.drivers import LANGUAGES, ROOT, Language, printed

EXAMPLES = ("fetch", "steer", "patch", "explain", "monitor")
PYTHON, *OTHERS = LANGUAGES


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
