"""A whole server in a process of its own, as it logs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_START_TIMEOUT_S = 900.0


@dataclass(slots=True)
class ServerProcess:
    """A server that runs."""

    pid: int
    port: int
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    """What it has logged of each call that ended, in order."""


@contextmanager
def served(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server on a free port, from when it serves."""
    command = [sys.executable, "-m", "actserve_server", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--metrics-port", "0", *options],
        env={**os.environ, **(environment or {})},
        stdout=sys.stderr,  # Standard output is the report's.
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        server = ServerProcess(process.pid, _port(process))
        timer.cancel()
        # Read on, or the server would wait for room in the pipe.
        threading.Thread(target=_read, args=(process, server), daemon=True).start()
        yield server
    finally:
        timer.cancel()
        process.terminate()
        process.wait(60)


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
