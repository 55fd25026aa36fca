"""A Prometheus of its own for tests, from what Debian's `prometheus` installs."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

START_S = 30.0
SCRAPE_INTERVAL_S = 1.0
JOB = "actserve"


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Skips where it is not installed, but on CI, which
    installs it."""
    found = shutil.which(name)
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed; run `make services`")
    pytest.skip(f"{name} is not installed; `make services` installs it")


class Prometheus:
    """A server that scrapes one address, with our rules."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        config = {
            "global": {
                "scrape_interval": f"{round(SCRAPE_INTERVAL_S * 1000)}ms",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": JOB, "static_configs": [{"targets": [target]}]},
            ],
        }
        path = folder / "prometheus.json"  # JSON is YAML.
        path.write_text(json.dumps(config))
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = int(free.getsockname()[1])
        self._url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        self.wait("up == 1")

    def wait(self, query: str) -> None:
        """Returns once the query has an answer. Fails if it never has one."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                if self.query(query):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"nothing for {query}: {self._log.read_text()}")
            time.sleep(0.05)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now, a dictionary for each series. Fails if it cannot be
        evaluated."""
        return self._get("query", query=expression)["result"]

    def rules(self) -> list[dict[str, Any]]:
        """The rules, with how their last evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{what}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            told = error.read().decode()
            if error.code == 503:  # It has not started.
                raise OSError(told) from None
            raise AssertionError(f"{parameters}: {told}") from None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(START_S)
