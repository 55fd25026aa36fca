"""How many connections there are files for."""

import resource
from typing import Any

import psutil
import pytest

from actserve_server import open_files
from actserve_server.config import ConfigError, Settings
from actserve_server.metrics_page import MAX_SCRAPES
from actserve_server.open_files import FEWEST_CONNECTIONS, SPARE_FILES
from actserve_server.rpc.server import MAX_PROBE_CONNECTIONS
from tests.contract.program import Program

NO_LIMIT = resource.RLIM_INFINITY


def settings(**options: Any) -> Settings:
    return Settings(**{"model": "fake", "metrics_port": 0, **options})


@pytest.mark.parametrize(
    ("options", "taken", "ports"),
    [
        ({}, SPARE_FILES, 1),
        ({"metrics_port": 9090}, SPARE_FILES + MAX_SCRAPES, 1),
        ({"health_port": 8080}, SPARE_FILES + MAX_PROBE_CONNECTIONS, 1),
        ({"http_port": 8080}, SPARE_FILES, 2),
    ],
)
def test_ports_for_calls_share_what_all_else_leaves(
    options: dict[str, Any], taken: int, ports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = taken + ports * FEWEST_CONNECTIONS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (least, least))
    assert open_files.room_for_connections(settings(**options)) == FEWEST_CONNECTIONS
    open_files.check_open_files(settings(**options))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (least - 1, least - 1))
    with pytest.raises(ConfigError, match=f"{least - 1} files .* needs {least}.* raise the hard"):
        open_files.check_open_files(settings(**options))


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (256, 4096, 4096),
        (256, 256, 256),
        (1024, NO_LIMIT, open_files.ENOUGH_FILES),
        (1024, 1 << 30, open_files.ENOUGH_FILES),
        (100_000, 200_000, 100_000),
        (NO_LIMIT, NO_LIMIT, open_files.ENOUGH_FILES),
    ],
)
def test_the_limit_that_counts_is_the_one_that_the_server_raises_it_to(
    soft: int, hard: int, raised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    assert open_files.limit() == raised


def test_a_server_raises_its_soft_limit_to_the_hard_one() -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))"
    program = Program(first=few)
    try:
        assert program.port  # It has started.
        process = psutil.Process(program.process.pid)
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (4096, 4096)
    finally:
        program.stop()


def test_a_server_that_could_take_hardly_a_connection_does_not_start() -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    program = Program(first=few)
    try:
        assert program.wait(120) != 0
        assert "256 files may be open" in "".join(program.said)
    finally:
        program.stop()
