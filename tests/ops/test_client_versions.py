"""The client installs beside what people have; `make test-client-versions` tests it at length."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Answers, streams, errors and the ends of calls, of both clients: what gRPC and protobuf carry.
TESTS = ["test_client.py", "test_cancelling.py", "test_errors.py", "test_package.py"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_client_runs_on_the_oldest_releases_that_it_allows_and_brings_no_others() -> None:
    command = [sys.executable, "scripts/client_versions.py", "--only", "oldest"]
    tests = [f"tests/client/{name}" for name in TESTS]
    done = subprocess.run(
        [*command, "--python", sys.executable, *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
