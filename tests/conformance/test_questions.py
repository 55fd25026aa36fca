"""Clients of every language make the same of the answers of a made-up model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.drivers import LANGUAGES, Language
from tests.conformance.questions import QUESTIONS, Asked

PYTHON, *OTHERS = LANGUAGES


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
