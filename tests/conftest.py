"""What every run of the tests says first, and refuses, and the databases that tests store in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actserve_server.engine.vllm import processor
from tests import postgres_cluster
from tests.isa.sitecustomize import ISAS
from tests.postgres_cluster import Cluster


def pytest_report_header() -> str:
    cores = len(os.sched_getaffinity(0))
    limited = " (limited by ISA)" if os.environ.get("TEST_ISA") else ""
    return f"processor: {processor.name()}, {cores} cores, {processor.instructions()}{limited}"


def pytest_configure() -> None:
    if (name := os.environ.get("TEST_ISA")) and not torch.cpu.get_capabilities()[ISAS[name].needs]:
        pytest.exit(f"ISA={name}: this processor has no more than {processor.instructions()}", 2)


@pytest.fixture(scope="session", autouse=True)
def _no_stores_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers that are told no data folder store nothing in that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server."""
    yield from postgres_cluster.cluster()


@pytest.fixture
def database_url(postgres: Cluster) -> Iterator[str]:
    """An empty database of it."""
    with postgres.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of a server that stores in an empty database, of each kind."""
    if request.param == "sqlite":
        return {"data_dir": str(tmp_path / "data")}
    return {"database_url": request.getfixturevalue("database_url")}
