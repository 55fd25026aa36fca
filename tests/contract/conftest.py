"""Servers of these tests look more often at what they look at now and then."""

from collections.abc import Iterator

import pytest

from actserve_server import app


@pytest.fixture(autouse=True, scope="session")
def looking_often() -> Iterator[None]:
    """At the health of engines, at what has expired and at the file of tokens: once a second
    otherwise, for which every test of these would wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "POLL_S", 0.05)
        yield
