"""What the OpenAI door costs: beside vLLM's own server on the same engine, in turns, and when
nobody calls.

Both are called over HTTP by a process of its own. vLLM's classes are served as `vllm serve` serves
them, by uvicorn with its quick parser; on one engine, since two would take each other's cores.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from rich.console import Console
from rich.table import Table

from actserve_server import app
from actserve_server.config import Settings
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.openai.vllm_app import VllmServing, vllm_app
from bench.servers import served

STREAMS, TOKENS = 64, 48
IDLE_S = 10.0

_CALLER = """
import asyncio, json, sys, time
import httpx
model, streams, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def one(client, url, number):
    body = {
        "model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "messages": [{"role": "user", "content": f"Tell me of number {number}."}],
    }
    parts = 0
    async with client.stream("POST", url + "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            parts += line.startswith("data: {")
    assert parts >= tokens, parts

async def load(url):
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        started = time.perf_counter()
        await asyncio.gather(*(one(client, url, number) for number in range(streams)))
        return time.perf_counter() - started

for line in sys.stdin:
    print(asyncio.run(load(line.strip())), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Load:
    """All streams at once, an entry for each round."""

    seconds: list[float]
    cpu_s: list[float]
    """Of the process that serves, without the engine's core and the caller."""

    @property
    def tokens_per_second(self) -> float:
        return STREAMS * TOKENS / statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Idle:
    """A whole server that nobody calls."""

    cpu_ms_per_second: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class OpenAiDoorFigures:
    door: Load
    vllm: Load
    time_ratios: list[float]
    """Of the door to vLLM's server, each of two neighbours."""
    cpu_ratios: list[float]
    with_door: Idle
    without_door: Idle


def measure_openai_door(
    model: str, dtype: str, options: EngineOptions, rounds: int, progress: Console
) -> OpenAiDoorFigures:
    idle = {
        with_door: _idle(model, dtype, *(("--http-port", "0") if with_door else ()))
        for with_door in (False, True)
    }
    progress.print(idle)
    loads = asyncio.run(_loads(replace(options, max_num_seqs=STREAMS), rounds, progress))
    door, vllm = loads["door"], loads["vllm"]
    return OpenAiDoorFigures(
        door=door,
        vllm=vllm,
        time_ratios=[one / other for one, other in zip(door.seconds, vllm.seconds, strict=True)],
        cpu_ratios=[one / other for one, other in zip(door.cpu_s, vllm.cpu_s, strict=True)],
        with_door=idle[True],
        without_door=idle[False],
    )


def openai_door_tables(figures: OpenAiDoorFigures) -> list[Table]:
    table = Table(title=f"{STREAMS} streams of {TOKENS} tokens at once (aim: no more than 1)")
    for column in ("server", "tokens/s", "server's CPU s", "time to vLLM's", "CPU to vLLM's"):
        table.add_column(column, justify="right")
    ratios = [statistics.median(each) for each in (figures.time_ratios, figures.cpu_ratios)]
    for name, load, told in (
        ("vLLM", figures.vllm, ("1", "1")),
        ("the door", figures.door, tuple(f"{ratio:.3f}" for ratio in ratios)),
    ):
        cpu_s = f"{statistics.median(load.cpu_s):.2f}"
        table.add_row(name, f"{load.tokens_per_second:.0f}", cpu_s, *told)
    idle = Table(title="A server that nobody calls")
    for column in ("HTTP port", "CPU ms a second", "memory MB"):
        idle.add_column(column, justify="right")
    for name, found in (("no", figures.without_door), ("yes", figures.with_door)):
        idle.add_row(name, f"{found.cpu_ms_per_second:.1f}", f"{found.memory_mb:.0f}")
    return [table, idle]


def _idle(model: str, dtype: str, *options: str) -> Idle:
    with served("--model", model, "--dtype", dtype, *options) as server:
        process = psutil.Process(server.pid)
        time.sleep(2.0)  # For what it does once after it has begun to serve.
        before = process.cpu_times()
        time.sleep(IDLE_S)
        after = process.cpu_times()
        spent = after.user - before.user + after.system - before.system
        return Idle(spent / IDLE_S * 1e3, process.memory_info().rss / 1e6)


async def _loads(options: EngineOptions, rounds: int, progress: Console) -> dict[str, Load]:
    engine = await VllmEngine.start(options)
    with tempfile.TemporaryDirectory() as data:
        settings: dict[str, Any] = {"port": 0, "http_port": 0, "data_dir": Path(data)}
        built = app.build(engine, Settings(**settings))
        await built.start()
        assert built.http is not None
        door = f"http://127.0.0.1:{built.http.port}"
        try:
            async with _vllm_server(engine, options) as vllm, _caller(options.model_id) as caller:
                return await _in_turns({"door": door, "vllm": vllm}, caller, rounds, progress)
        finally:
            await built.close()


async def _in_turns(
    urls: dict[str, str], caller: Process, rounds: int, progress: Console
) -> dict[str, Load]:
    found = {name: Load([], []) for name in urls}
    assert caller.stdin is not None
    assert caller.stdout is not None
    for number in range(-1, rounds):  # Round -1 warms up.
        # Each is first as often as the other.
        for name in sorted(urls, reverse=number % 2 == 0):
            before = time.process_time()
            caller.stdin.write(f"{urls[name]}\n".encode())
            seconds = json.loads(await caller.stdout.readline())
            cpu_s = time.process_time() - before
            progress.print(f"round {number}: {name}: {seconds:.2f} s, {cpu_s:.2f} s of CPU")
            if number >= 0:
                found[name].seconds.append(seconds)
                found[name].cpu_s.append(cpu_s)
    return found


@asynccontextmanager
async def _vllm_server(engine: VllmEngine, options: EngineOptions) -> AsyncIterator[str]:
    """The address of vLLM's own classes in front of its engine, without any of ours."""
    inner = vllm_app(engine.vllm, options.model_id, VllmServing())
    config = uvicorn.Config(inner, port=0, access_log=False, log_level="warning")
    config.load()
    server = uvicorn.Server(config)  # Without its `serve`, which takes the process's signals.
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.shutdown()


@asynccontextmanager
async def _caller(model: str) -> AsyncIterator[Process]:
    arguments = ("-c", _CALLER, model, str(STREAMS), str(TOKENS))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
