"""The server as a process of its own."""

import json
import subprocess
import sys
import threading
from typing import Any

START_WITHIN_S = 120
"""A machine that is busy with much else may take most of it."""

_SERVE = """
import sys
{first}
from actserve_server import app, cli
app.FAKE_SHAPE = {}  # That of `FakeEngine`, which the requests of tests are made for.
sys.exit(cli.main(sys.argv[1:]))
"""


class Program:
    """`actserve-server serve --model fake` as a process, which does `first` before anything is
    imported."""

    def __init__(self, *flags: str, first: str = "") -> None:
        serve = _SERVE.replace("{first}", first)
        command = [sys.executable, "-c", serve, "serve", "--model", "fake"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self.said: list[str] = []
        """What is no line of its log, such as why it could not start."""
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.lines.append(json.loads(line))
                if self.lines[-1]["event"] == "serving":
                    self.ready.set()
            else:
                self.said.append(line)
        self.ready.set()  # It has ended, and nobody is to wait for it.

    @property
    def port(self) -> int:
        assert self.ready.wait(START_WITHIN_S), self.lines
        ports = [line["port"] for line in self.lines if line["event"] == "serving"]
        assert ports, (self.lines, "".join(self.said))
        return ports[0]

    def wait(self, timeout_s: float) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(5)
        return status

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
