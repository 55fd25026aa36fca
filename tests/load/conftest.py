"""One server for all tests that load it."""

from collections.abc import Iterator

import pytest

from tests.load.loaded_server import SECONDS, START_WITHIN_S, Server, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(START_WITHIN_S + 6 * SECONDS + 600))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("server")) as server:
        yield server
