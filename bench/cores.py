"""What the other cores give: a server that computes on one core beside one that chooses its own.

Both are whole servers, each in a process of its own, asked in turn by the same client over gRPC, so
that whatever else the machine does hits both alike. While prompts are computed, another process
asks for health and tokenizes a few words, and says how long it waited.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

import actserve
from bench.servers import served
from bench.workloads import WORKLOADS, Workload

_SECONDS_OF_PREFILL = 10.0
"""How long waits are measured in each round."""

_PROBE = """
import json, sys, time
import grpc
import actserve
from grpc_health.v1 import health_pb2, health_pb2_grpc
target = f"127.0.0.1:{sys.argv[1]}"
client, waits = actserve.Client(target), {"health": [], "tokenize": []}
health = health_pb2_grpc.HealthStub(grpc.insecure_channel(target))
asks = {
    "health": lambda: health.Check(health_pb2.HealthCheckRequest()),
    "tokenize": lambda: client.tokenize("The capital of France is"),
}
for ask in asks.values():
    ask()
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for name, ask in asks.items():
        started = time.perf_counter()
        ask()
        waits[name].append(time.perf_counter() - started)
        time.sleep(0.02)
print(json.dumps(waits))
"""


@dataclass(frozen=True, slots=True)
class CoresFigures:
    """Medians over rounds."""

    fetch_tokens_per_second: float
    """On the cores that the server chose, one layer of every prompt."""
    fetch_ratio: float
    """To the same on one core."""
    decode_tokens_per_second: float
    decode_ratio: float
    health_wait_p99_ms: float
    """During prefill, of all rounds."""
    tokenize_wait_p99_ms: float


def measure_cores(model: str, dtype: str, rounds: int, progress: Console) -> CoresFigures:
    decode, prefill = WORKLOADS
    rates: dict[tuple[str, str], list[float]] = {}
    waits: dict[str, list[float]] = {"health": [], "tokenize": []}
    first = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                served("--model", model, "--dtype", dtype, environment=environment)
            ).port
            for name, environment in (
                ("one core", {"VLLM_CPU_OMP_THREADS_BIND": str(first)}),
                ("its choice", {}),
            )
        }
        for number in range(-1, rounds):  # Round -1 warms up.
            for name, port in servers.items():
                client = actserve.Client(f"127.0.0.1:{port}")
                for load, work in ((prefill, _fetch), (decode, _generate)):
                    rate = _rate(client, work, load, number)
                    progress.print(f"round {number}: {load.name}, {name}: {rate:.0f} tok/s")
                    if number >= 0:
                        rates.setdefault((load.name, name), []).append(rate)
            if number >= 0:
                found = _waits(servers["its choice"], prefill)
                for name, values in found.items():
                    progress.print(f"round {number}: {name}: {_p99_ms(values):.0f} ms at p99")
                    waits[name] += values

    def ratio(load: Workload) -> float:
        pairs = zip(rates[load.name, "its choice"], rates[load.name, "one core"], strict=True)
        return statistics.median(chosen / one for chosen, one in pairs)

    return CoresFigures(
        fetch_tokens_per_second=statistics.median(rates[prefill.name, "its choice"]),
        fetch_ratio=ratio(prefill),
        decode_tokens_per_second=statistics.median(rates[decode.name, "its choice"]),
        decode_ratio=ratio(decode),
        health_wait_p99_ms=_p99_ms(waits["health"]),
        tokenize_wait_p99_ms=_p99_ms(waits["tokenize"]),
    )


def cores_tables(figures: CoresFigures) -> list[Table | str]:
    count = len(os.sched_getaffinity(0))
    table = Table(title=f"A server that computes as it chooses on {count} cores, over gRPC")
    for column in ("", "tokens/s", "of one core", "aim on 2 cores"):
        table.add_column(column)
    rows = (
        ("fetch, one layer", figures.fetch_tokens_per_second, figures.fetch_ratio, 1.7),
        ("decode", figures.decode_tokens_per_second, figures.decode_ratio, 1.6),
    )
    for name, rate, ratio, aim in rows:
        table.add_row(name, f"{rate:.0f}", f"{ratio:.2f}", f"{aim}")
    waits = (
        f"waits of another caller meanwhile, 99th percentile: health "
        f"{figures.health_wait_p99_ms:.0f} ms, tokenize {figures.tokenize_wait_p99_ms:.0f} ms "
        "(aim: 100 ms)"
    )
    return [table, waits]


def _fetch(client: actserve.Client, prompts: list[list[int]], load: Workload) -> int:
    middle = client.models()[0].layer_count // 2
    found = client.fetch(prompts, sites=f"resid_post.{middle}", progress=False)
    return sum(len(each.token_ids) for each in found)


def _generate(client: actserve.Client, prompts: list[list[int]], load: Workload) -> int:
    found = client.generate(
        prompts, max_tokens=load.max_tokens, temperature=0.0, ignore_eos=True, progress=False
    )
    return sum(len(each.token_ids) for each in found)


def _rate(
    client: actserve.Client,
    work: Callable[[actserve.Client, list[list[int]], Workload], int],
    load: Workload,
    seed: int,
) -> float:
    prompts = [list(request.token_ids) for request in load.requests(seed)]
    started = time.perf_counter()
    tokens = work(client, prompts, load)
    return tokens / (time.perf_counter() - started)


def _waits(port: int, load: Workload) -> dict[str, list[float]]:
    """Seconds that another caller waited while prompts were computed."""
    probe = subprocess.Popen(
        [sys.executable, "-c", _PROBE, str(port), str(_SECONDS_OF_PREFILL)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert probe.stdout is not None
    client = actserve.Client(f"127.0.0.1:{port}")
    probe.stdout.readline()
    while probe.poll() is None:
        _rate(client, _fetch, load, random.getrandbits(32))
    return json.loads(probe.stdout.read())


def _p99_ms(waits: list[float]) -> float:
    return float(np.quantile(waits, 0.99)) * 1e3
