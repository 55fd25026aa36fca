"""What the conformance tests share, and the table that they end with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.conformance.drivers import LANGUAGES, Driver, Language, why_not
from tests.conformance.runner import Certificates
from tests.docs.made_up import made_up_server

RESULTS: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
"""By group and name of a case: what came of it in each language."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case", action="store_true", help="print a line for every case of conformance"
    )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a server with a made-up model."""
    with made_up_server() as address:
        yield address


class Drivers:
    """The drivers of a run; one that has ended is started anew."""

    def __init__(self) -> None:
        self._running: dict[str, Driver] = {}

    def of(self, language: Language) -> Driver:
        if reason := why_not(language):
            pytest.skip(reason)
        driver = self._running.get(language.name)
        if driver is None or not driver.running:
            driver = self._running[language.name] = Driver(language)
        return driver

    def close(self) -> None:
        for driver in self._running.values():
            driver.close()


@pytest.fixture(scope="session")
def drivers() -> Iterator[Drivers]:
    running = Drivers()
    yield running
    running.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    parameters = getattr(item, "callspec", None)
    if parameters and "case" in parameters.params and (report.when == "call" or report.skipped):
        case, language = parameters.params["case"], parameters.params["language"]
        mark = {"passed": "ok", "failed": "FAILED", "skipped": "-"}[report.outcome]
        if language.name in case.without:
            mark = ""
        RESULTS[case.group, case.name][language.name] = mark
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not RESULTS:
        return
    every = config.getoption("--every-case", default=False)
    names = [language.name for language in LANGUAGES]
    table = Table(title="conformance", title_justify="left")
    table.add_column("cases")
    for name in names:
        table.add_column(name, justify="right")
    if every:
        for (group, name), marks in RESULTS.items():
            table.add_row(f"{group}: {name}", *(marks.get(each, "") for each in names))
    else:
        groups: dict[str, list[dict[str, str]]] = defaultdict(list)
        for (group, _), marks in RESULTS.items():
            groups[group].append(marks)
        for group, cases in groups.items():
            table.add_row(group, *(_counted(cases, each) for each in names))
    console = Console(file=terminalreporter._tw._file, width=120 if every else 80)
    console.print(table)


def _counted(cases: list[dict[str, str]], language: str) -> str:
    marks = [marks[language] for marks in cases if marks.get(language)]
    if not marks or "-" in marks:
        return "-"
    return f"{marks.count('ok')} of {len(marks)}"
