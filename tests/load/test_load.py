"""A server under load refuses what it must, answers the rest exactly, and does not grow.

`make load` runs it at length: 500 streams for ten minutes. `LOAD_STREAMS` and `LOAD_SECONDS` make
it shorter; what is said of memory needs the whole time.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import psutil
import pytest

import actserve
from actserve import AsyncClient

STREAMS = int(os.environ.get("LOAD_STREAMS", "500"))
SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
START_WITHIN_S = 600
CALL_S = 300
"""What one call may take in a server that is full, all its attempts together."""
WARM_UP = 0.3
"""Of the time, in which caches and pools fill up."""
MAX_GROWTH = 0.02
"""Of the memory after warming up."""
SAMPLED = 0.02
"""Of the answers, that are compared with what is given to a caller who is alone."""
TOLERANCE = 1e-3
"""Relative, in float32: what the composition of a batch does to rounding."""
STATED = {"QUEUE_FULL", "QUOTA_EXCEEDED", "READER_STALLED"}
"""The reasons for which a loaded server may refuse a call, or end one that reads too slowly."""

WIDTH, LAYERS = 576, 30
WORDS = ("river", "stone", "music", "engine", "letter", "winter")
PROMPTS = [
    " ".join(random.Random(number).choices(WORDS, k=size))
    for number, size in enumerate([3, 8, 20, 60, 150, 400] * 10)
]
OPTIONS = {
    "model": "smollm2-135m",
    "port": 0,
    "metrics-port": 0,
    "dtype": "float32",
    "max-model-len": 1024,
    "kv-cache-memory-bytes": 256 << 20,
}

pytestmark = pytest.mark.timeout(START_WITHIN_S + 6 * SECONDS + 600)


@dataclass
class Server:
    process: psutil.Process
    port: int

    def mebibytes(self) -> float:
        """Of the server and of all processes of its engine, what is theirs alone."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_full_info().uss for each in every) / (1 << 20)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
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


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{server.port}", timeout=CALL_S) as client:
        yield client


# What callers ask for.


def _vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def _site(seed: int) -> str:
    return f"resid_post.{seed % LAYERS}"


def _rows(answer: actserve.Activations, *sites: str) -> list[np.ndarray]:
    return [np.asarray(answer[site]) for site in sites]


async def _fetch(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    sites = [_site(seed), _site(seed + 7)]
    return _rows(await client.fetch(prompt, sites), *sites)


async def _fetch_all_layers(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    sites = [f"resid_post.{layer}" for layer in range(LAYERS)]
    return _rows(await client.fetch(prompt, sites, positions="last"), *sites)


async def _project(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    directions = np.stack([_vector(seed), _vector(seed + 1)])
    site = _site(seed)
    projection = actserve.Projection(directions)
    return _rows(await client.fetch(prompt, site, projection=projection), site)


async def _generate(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    made = await client.generate(prompt, temperature=0.0, max_tokens=1 + seed % 24)
    return [np.array(made.token_ids)]


async def _steer(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    site, push = _site(seed), actserve.Add(_site(seed), _vector(seed), coefficient=4.0)
    made = await client.generate(
        prompt, site, steer=push, temperature=0.0, max_tokens=1 + seed % 12
    )
    assert made.activations is not None
    return [np.array(made.token_ids), *_rows(made.activations, site)]


async def _replace(client: AsyncClient, prompt: str, seed: int) -> list[np.ndarray]:
    site = _site(seed)
    put = actserve.Replace(site, _vector(seed), positions="last")
    return _rows(await client.fetch(prompt, site, steer=put, positions="last"), site)


Ask = Callable[[AsyncClient, str, int], Awaitable[list[np.ndarray]]]
KINDS: list[Ask] = [_fetch, _fetch_all_layers, _project, _generate, _steer, _replace]


@dataclass
class Outcome:
    given: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sampled: list[tuple[Ask, str, int, list[np.ndarray]]] = field(default_factory=list)


async def _caller(client: AsyncClient, number: int, until: float, outcome: Outcome) -> None:
    """One stream after the other; some are given up halfway."""
    rng = random.Random(number)
    while time.monotonic() < until:
        ask, prompt, seed = rng.choice(KINDS), rng.choice(PROMPTS), rng.randrange(300)
        asked = asyncio.ensure_future(ask(client, prompt, seed))
        try:
            if rng.random() < 0.1:
                await asyncio.wait({asked}, timeout=rng.random())
                asked.cancel()
            answer = await asked
        except asyncio.CancelledError:
            outcome.given["given up"] += 1
        except actserve.ActserveError as error:
            outcome.refused[error.reason or type(error).__name__] += 1
            if error.reason not in STATED:
                outcome.wrong.append(f"{ask.__name__}: {error!r}")
        else:
            outcome.given[ask.__name__] += 1
            if rng.random() < SAMPLED:
                outcome.sampled.append((ask, prompt, seed, answer))


async def _watch(server: Server, until: float) -> list[tuple[float, float]]:
    """Seconds and mebibytes."""
    seen, started = [], time.monotonic()
    while time.monotonic() < until:
        seen.append((time.monotonic() - started, server.mebibytes()))
        await asyncio.sleep(2.0)
    return seen


async def test_a_loaded_server_refuses_or_answers_exactly_and_does_not_grow(
    server: Server, client: AsyncClient
) -> None:
    await client.fetch("warm", "resid_post.0")
    outcome, until = Outcome(), time.monotonic() + SECONDS
    watching = asyncio.create_task(_watch(server, until))
    await asyncio.gather(*(_caller(client, number, until, outcome) for number in range(STREAMS)))
    memory = await watching
    print(f"given {dict(outcome.given)}, refused {dict(outcome.refused)}")
    assert not outcome.wrong
    assert sum(outcome.given.values()) > STREAMS

    warm = [size for at, size in memory if at > WARM_UP * SECONDS]
    third = max(1, len(warm) // 3)
    first, last = median(warm[:third]), median(warm[-third:])
    print(f"{first:.0f} MiB after warming up, {last:.0f} MiB at the end, {last / first - 1:+.2%}")
    assert last <= (1 + MAX_GROWTH) * first

    print(f"{len(outcome.sampled)} answers compared with those given alone")
    assert outcome.sampled
    for ask, prompt, seed, answer in outcome.sampled:
        alone = await ask(client, prompt, seed)
        assert len(answer) == len(alone)
        for mine, other in zip(answer, alone, strict=True):
            assert mine.shape == other.shape, (ask.__name__, prompt, seed)
            scale = np.abs(other).max(initial=1.0)
            assert np.abs(mine - other).max(initial=0.0) <= TOLERANCE * scale, (
                ask.__name__,
                prompt,
                seed,
            )
