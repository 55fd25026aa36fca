"""HAProxy in front of servers, by the configuration that is in the repository; Debian's package."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[1] / "ops/haproxy/haproxy.cfg"
START_S = 30.0


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


@contextmanager
def proxy(servers: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """The address of one in front of the servers `a`, `b` and `c`, of which each has its port and
    its health port. Skips where HAProxy is not installed, but on CI, which installs it."""
    at = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if at is None:
        if os.environ.get("CI") == "true":
            pytest.fail("HAProxy is not installed; run `make services`")
        pytest.skip("HAProxy is not installed; `make services` installs it")
    address = f"127.0.0.1:{free_port()}"
    ports = {
        name: value
        for server, (port, health) in servers.items()
        for name, value in (
            (f"ACTSERVE_{server.upper()}", f"127.0.0.1:{port}"),
            (f"ACTSERVE_{server.upper()}_HEALTH", str(health)),
        )
    }
    with subprocess.Popen(
        [at, "-db", "-f", str(CONFIG)],
        env={**os.environ, **ports, "ACTSERVE_BIND": address},
    ) as process:
        try:
            wait_for(lambda: _takes_connections(address), START_S)
            yield address
        finally:
            process.kill()


def _takes_connections(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def wait_for(what: Callable[[], bool], within_s: float) -> None:
    """Until it holds."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"it does not hold after {within_s:g} s"
        time.sleep(0.05)
