"""Every client does what every case says."""

from __future__ import annotations

import pytest

from tests.conformance.cases import Case, read_cases, read_known_failing
from tests.conformance.conftest import Drivers
from tests.conformance.drivers import LANGUAGES, Language
from tests.conformance.runner import Certificates, run

CASES = read_cases()
KNOWN_FAILING = read_known_failing()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_case(
    language: Language,
    case: Case,
    drivers: Drivers,
    certificates: Certificates,
    request: pytest.FixtureRequest,
) -> None:
    if case.id in KNOWN_FAILING.get(language.name, ()):
        # Strict, by the settings of pytest: one that passes has to leave the list.
        request.applymarker(pytest.mark.xfail(reason="known_failing.yaml lists it"))
    if reason := case.without.get(language.name):
        pytest.skip(reason)
    run(case.of(language.name), drivers.of(language), certificates)


def test_what_is_known_to_fail_is_a_case_in_a_language() -> None:
    assert KNOWN_FAILING.keys() <= {language.name for language in LANGUAGES}
    assert {name for names in KNOWN_FAILING.values() for name in names} <= {c.id for c in CASES}
