"""A process of vLLM's ends with its server, however that ended."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

ENGINE = """
import signal, sys, time
from actserve_server.engine.vllm.lifeline import end_with
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with(int(sys.argv[1]), grace_s=0.1)
print("started", flush=True)
time.sleep(60)
"""
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER) as process:
        yield process
        process.kill()


def _engine(server: int, manner: str = "obedient") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENGINE, str(server), manner]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("manner", "ended_by"), [("obedient", 15), ("stubborn", 9)])
def test_an_engine_ends_when_its_server_is_killed(
    server: subprocess.Popen[bytes], manner: str, ended_by: int
) -> None:
    with _engine(server.pid, manner) as engine:
        assert engine.stdout
        assert engine.stdout.readline() == "started\n"
        assert engine.poll() is None
        server.kill()
        server.wait()
        assert engine.wait(20) == -ended_by


def test_an_engine_whose_server_is_gone_before_it_looked_ends_at_once() -> None:
    with subprocess.Popen(SLEEPER) as gone:
        gone.kill()
    with _engine(gone.pid) as engine:
        assert engine.wait(20) == -15
