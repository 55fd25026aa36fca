"""The drivers: one program for each language, asked by JSON lines, as `README.md` says."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

ANSWER_TIMEOUT_S = 90.0
"""A driver that has not answered by then is taken for stuck."""


@dataclass(frozen=True)
class Language:
    """How to run the driver of a language."""

    name: str
    tool: str
    """What has to be on PATH."""
    program: Path
    """What `make clients` builds."""
    command: tuple[str, ...]
    example: tuple[str, ...]
    """The command of an example, whose name stands in place of {name}."""


LANGUAGES = (
    Language(
        "python",
        sys.executable,
        ROOT / "tests/conformance/python_driver.py",
        (sys.executable, "-m", "tests.conformance.python_driver"),
        (sys.executable, "client/python/examples/{name}.py"),
    ),
    Language(
        "go",
        "go",
        ROOT / "client/go/build/driver",
        ("client/go/build/driver",),
        ("client/go/build/{name}",),
    ),
    Language(
        "typescript",
        "node",
        ROOT / "client/typescript/build/driver/driver.js",
        ("node", "client/typescript/build/driver/driver.js"),
        ("node", "client/typescript/build/examples/{name}.js"),
    ),
    Language(
        "rust",
        "cargo",
        ROOT / "client/rust/target/release/driver",
        ("client/rust/target/release/driver",),
        ("client/rust/target/release/examples/{name}",),
    ),
    Language(
        "java",
        "mvn",
        ROOT / "client/java/driver/target/driver.jar",
        ("java", "-jar", "client/java/driver/target/driver.jar"),
        ("java", "-cp", "client/java/driver/target/driver.jar", "{Name}"),
    ),
)


def why_not(language: Language) -> str | None:
    """Why a language cannot be tested here; None if it can. Raises if its tools are here and its
    driver is not: that is a mistake and no reason to skip."""
    if shutil.which(language.tool) is None:
        return f"{language.name} is not tested: {language.tool} is not on PATH"
    if not language.program.exists():
        name = language.program.relative_to(ROOT)
        raise FileNotFoundError(f"{name} does not exist; build the drivers with `make clients`")
    return None


def printed(language: Language, name: str, address: str) -> str:
    """What an example prints about a server."""
    if reason := why_not(language):
        pytest.skip(reason)
    command = [each.format(name=name, Name=name.title()) for each in language.example]
    done = subprocess.run(
        [*command, address], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert not done.returncode, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


class Driver:
    """A running driver."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._asked = 0
        self._process = subprocess.Popen(
            language.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Its answer. A driver that does not give one is ended."""
        assert self._process.stdin
        self._asked += 1
        self._process.stdin.write(json.dumps({"id": self._asked, **question}) + "\n")
        self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise AssertionError(
                f"the {self.language.name} driver gave no answer in {timeout_s:g} s to {question}"
            ) from None
        if line is None:
            raise AssertionError(f"the {self.language.name} driver ended at {question}")
        answer = json.loads(line)
        assert answer.pop("id") == self._asked, f"answered another question: {line}"
        return answer

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(10)
            self._process.stdout.close()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(
                f"the {self.language.name} driver goes on after its input has ended"
            ) from None
