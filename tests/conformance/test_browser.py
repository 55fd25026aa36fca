"""The TypeScript client does over `fetch` and the door for browsers what it does over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conformance.cases import Case, read_cases
from tests.conformance.conftest import Drivers
from tests.conformance.drivers import LANGUAGES, Language
from tests.conformance.runner import Certificates, run
from tests.conformance.web_front import WebFront

(TYPESCRIPT,) = (language for language in LANGUAGES if language.name == "typescript")
BROWSER = replace(TYPESCRIPT, name="browser")

NOT_FOR_BROWSERS = {
    "errors: details that cannot be read hide nothing": "the door sends none such",
    "connecting: the user agent tells the client and its version": "browsers tell their own",
    "connecting: the trace that is current is passed on": "OpenTelemetry is for Node.js",
    "connecting: the trace that is current is passed on in streams": "OpenTelemetry is for Node.js",
}


OF_THE_TRANSPORT = {"asking", "connecting", "deadlines", "errors", "pages", "retries"}
"""Groups of cases. Of the others, which are the same code above it, those of cut streams."""


def is_asked(case: Case) -> bool:
    """Whether a case is of the transport, and of a server that browsers reach as they do."""
    client = case.ask.get("client", {})
    return (
        len(case.servers) == 1
        and case.tls is None
        and "tls" not in client
        and "targets" not in client
        and (case.group in OF_THE_TRANSPORT or "cut" in case.name or "lost" in case.name)
        and case.id not in NOT_FOR_BROWSERS
        and "typescript" not in case.without
    )


CASES = [case for case in read_cases() if is_asked(case)]


@pytest.fixture(scope="module")
def front() -> Iterator[WebFront]:
    front = WebFront()
    yield front
    front.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("language", [BROWSER], ids=lambda language: language.name)
def test_case(
    language: Language, case: Case, front: WebFront, drivers: Drivers, certificates: Certificates
) -> None:
    asked = {**case.ask, "client": {**case.ask.get("client", {}), "web": True}}
    run(replace(case, ask=asked), drivers.of(language), certificates, front.to)
