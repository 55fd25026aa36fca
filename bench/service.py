"""The whole service: rows fetched by the Python client, in a process of its own, over gRPC."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from actserve_server.app import build
from actserve_server.config import Settings
from actserve_server.engine.vllm.engine import VllmEngine


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """End-to-end rates of one fetch of many prompts."""

    name: str
    tokens_per_second: float
    megabytes_per_second: float


_CLIENT = """
import json, random, sys, time
import actserve
port, sites = sys.argv[1], sys.argv[2].split(",")
client = actserve.Client(f"127.0.0.1:{port}")
rng = random.Random(sys.argv[2])
def prompts(count): return [[rng.randrange(1000, 40000) for _ in range(256)] for _ in range(count)]
client.fetch(prompts(4), sites=sites)
started = time.perf_counter()
results = client.fetch(prompts(64), sites=sites)
seconds = time.perf_counter() - started
tokens = sum(len(result.token_ids) for result in results)
# Two bytes an element on the wire.
size = 2 * sum(result[site].size for result in results for site in sites)
print(json.dumps({"tokens": tokens, "bytes": size, "seconds": seconds}))
"""


async def measure_service(engine: VllmEngine, progress: Console) -> list[ServiceFigures]:
    """Fetches 64 prompts of 256 tokens, at one layer and at all, from a server around `engine`."""
    settings: dict[str, Any] = {"port": 0, "drain_grace_s": 1.0}
    app = build(engine, Settings(**settings))
    await app.start()
    layers = range(engine.info.layer_count)
    cases = {
        "one layer": [f"resid_post.{len(layers) // 2}"],
        "all layers": [f"resid_post.{layer}" for layer in layers],
    }
    figures = []
    for name, sites in cases.items():
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CLIENT, str(app.port), ",".join(sites),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await client.communicate()
        if client.returncode:
            raise RuntimeError(f"the benchmark's client failed with {client.returncode}")
        got = json.loads(output)
        figures.append(
            ServiceFigures(
                name, got["tokens"] / got["seconds"], got["bytes"] / got["seconds"] / 1e6
            )
        )
        progress.print(f"service, {name}: {figures[-1]}")
    await app.drain()
    return figures
