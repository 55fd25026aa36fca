"""One server for all that loads it, with tenants, as where others depend on it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from actserve import AsyncClient

SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
"""Of the longest test; the others take a part of it."""
START_WITHIN_S = 600

TENANTS = ("first", "second", "third", "fourth")
"""Who load it with all that there is."""
LIGHT, HEAVY, WEIGHT = "light", "heavy", 3.0
"""Two that want more than there is, and what the heavy one weighs beside the other."""

MAX_RUNNING = 64
OPTIONS = {
    "model": "smollm2-135m",
    "port": 0,
    "metrics-port": 0,
    "dtype": "float32",
    "max-model-len": 1024,
    "kv-cache-memory-bytes": 256 << 20,
    # About as many as the cache has room for: more would wait inside vLLM, in the order that they
    # came.
    "max-running": MAX_RUNNING,
    # What is taken as it is needed, so that all of it is when the server is warm.
    "row-cache-bytes": 16 << 20,
    "vector-budget-bytes": 16 << 20,
}


@dataclass
class Server:
    process: psutil.Process
    port: int

    def client(self, tenant: str) -> AsyncClient:
        """No call of it has a deadline: machines differ in how fast they are."""
        return AsyncClient(f"127.0.0.1:{self.port}", token=_token(tenant), timeout=None)

    def mebibytes(self) -> tuple[float, float]:
        """What is theirs alone: of the server, and of all processes of its engine."""
        engine = self.process.children(recursive=True)
        return _mebibytes([self.process]), _mebibytes(engine)


def _mebibytes(processes: Iterable[psutil.Process]) -> float:
    return sum(each.memory_full_info().uss for each in processes) / (1 << 20)


def _token(tenant: str) -> str:
    return f"of-{tenant}"


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    """A server that has its files in this folder."""
    tokens, tenants = folder / "tokens.yaml", folder / "tenants.yaml"
    callers = [
        {
            "sha256": hashlib.sha256(_token(tenant).encode()).hexdigest(),
            "tenant": tenant,
            "role": "experimenter",
        }
        for tenant in (*TENANTS, LIGHT, HEAVY)
    ]
    tokens.write_text(yaml.safe_dump(callers))
    tenants.write_text(yaml.safe_dump({"tenants": {HEAVY: {"weight": WEIGHT}}}))
    options = {
        **OPTIONS,
        "data-dir": folder / "data",
        "token-file": tokens,
        "tenant-file": tenants,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "actserve_server", "serve", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        ready, port = threading.Event(), 0

        def read() -> None:
            nonlocal port
            assert process.stderr is not None
            for line in process.stderr:
                told = json.loads(line) if line.startswith("{") else {}
                if told.get("event") == "serving":
                    port = told["port"]
                    ready.set()
                elif told.get("level") in ("error", "critical"):
                    print(line, end="")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert ready.wait(START_WITHIN_S)
            yield Server(psutil.Process(process.pid), port)
        finally:
            process.terminate()
            process.wait(120)
            reader.join()
