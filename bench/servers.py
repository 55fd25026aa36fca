"""A whole server in a process of its own, as it logs."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

_START_TIMEOUT_S = 900.0


@dataclass(slots=True)
class ServerProcess:
    """A server that runs."""

    pid: int
    port: int
    metrics_port: int
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    """What it has logged of each call that ended, in order."""

    def metric(self, name: str) -> float:
        """The value of a metric that has no labels."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            families = text_string_to_metric_families(page.read().decode())
            return next(family.samples[0].value for family in families if family.name == name)


@contextmanager
def served(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server on a free port, from when it serves."""
    command = [sys.executable, "-m", "actserve_server", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--metrics-port", str(metrics_port := _free_port()), *options],
        env={**os.environ, **(environment or {})},
        stdout=sys.stderr,  # Standard output is the report's.
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        server = ServerProcess(process.pid, _port(process), metrics_port)
        timer.cancel()
        # Read on, or the server would wait for room in the pipe.
        threading.Thread(target=_read, args=(process, server), daemon=True).start()
        yield server
    finally:
        timer.cancel()
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _port(process: "subprocess.Popen[str]") -> int:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if (event := _event(line)).get("event") == "serving":
            return event["port"]
    raise RuntimeError(f"the server ended with {process.wait()}:\n{''.join(said[-20:])}")


def _read(process: "subprocess.Popen[str]", server: ServerProcess) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if (event := _event(line)).get("event") == "call":
            server.calls.append(event)


def _event(line: str) -> dict[str, Any]:
    return json.loads(line) if line.startswith("{") else {}
