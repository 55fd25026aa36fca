"""A server that is killed leaves no engine behind."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

from tests.integration.families import FAMILIES, make_checkpoint

ENDS_WITHIN_S = 30


def test_the_engine_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    (llama,) = (family for family in FAMILIES if family.name == "llama")
    options = {
        "model": make_checkpoint(llama, tmp_path),
        "port": 0,
        "metrics-port": 0,
        "dtype": "float32",
        "max-model-len": 256,
        "kv-cache-memory-bytes": 16 << 20,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "actserve_server", "serve", "--enforce-eager", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        started = (json.loads(line) for line in server.stderr if line.startswith("{"))
        assert any(line["event"] == "serving" for line in started)
        children = psutil.Process(server.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
        server.kill()
        _, alive = psutil.wait_procs(children, timeout=ENDS_WITHIN_S)
        assert not alive
