"""Clients in every language get the Python client's numbers from a real model, bit for bit."""

from collections.abc import Iterator

import pytest

from tests.conformance.drivers import LANGUAGES, Language, printed
from tests.conformance.questions import QUESTIONS, Asked
from tests.integration.conftest import Served

PYTHON, *OTHERS = LANGUAGES


@pytest.fixture(scope="module")
def asked(served: Served) -> Iterator[Asked]:
    asked = Asked(f"127.0.0.1:{served.port}")
    yield asked
    asked.close()


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.name)
def test_numbers_are_those_of_the_python_client_bit_for_bit(
    asked: Asked, language: Language, name: str
) -> None:
    assert asked.answer(language, name) == asked.answer(PYTHON, name)


@pytest.mark.parametrize("example", ["fetch", "steer", "patch"])
@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.name)
def test_an_example_prints_what_it_prints_in_python(
    asked: Asked, language: Language, example: str
) -> None:
    expected = printed(PYTHON, example, asked.address)
    assert printed(language, example, asked.address) == expected
