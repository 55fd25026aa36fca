"""What the documentation's code runs against."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from actserve._channel import DEFAULT_TARGET, Connection
from tests.docs.made_up import made_up_server


@pytest.fixture(scope="session")
def target() -> Iterator[str]:
    if given := os.environ.get("ACTSERVE_DOCS_TARGET"):
        yield given
    else:
        with made_up_server() as address:
            yield address


@pytest.fixture
def at_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that documents name is that of the server."""
    connect = Connection.of

    def of(address: str, **options: Any) -> Connection:
        return connect(target if address == DEFAULT_TARGET else address, **options)

    monkeypatch.setattr(Connection, "of", staticmethod(of))
