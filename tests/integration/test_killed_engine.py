"""A server whose engine is killed serves again by itself, and answers nothing wrongly meanwhile.

`KILLS=20` kills it more often and is for seeing what each death leaves behind.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import actserve

KILLS = int(os.environ.get("KILLS", "3"))
START_WITHIN_S = 600
SERVED_WITHIN_S = 600
NOTICED_WITHIN_S = 300
CALL_S = 1200
BETWEEN_KILLS_S = 3
"""In which answers are given whole."""
KEPT_S = 24 * 3600
"""Longer than any number of kills takes."""
TOLERANCE = 1e-3
"""Relative, in float32: what the composition of a batch does to rounding."""
CONTEXT_THREAD = "ZMQbg/Reaper"
"""Of which each context of ZeroMQ has one; the connection to an engine is in one of its own."""
FEW_ENGINES_HOLD = 18
"""File descriptors, nine for each of two; of threads they have fewer."""
SITE, WIDTH = "resid_post.12", 576
OPTIONS = {
    "model": "smollm2-135m",
    "port": 0,
    "dtype": "float32",
    "max-model-len": 512,
    "kv-cache-memory-bytes": 128 << 20,
    "max-kept-seconds": KEPT_S,
}

pytestmark = pytest.mark.timeout(START_WITHIN_S + (KILLS + 1) * (SERVED_WITHIN_S + 60))


@dataclass
class Server:
    """`actserve-server serve` as a process, and what can be seen of it from outside."""

    process: psutil.Process
    port: int
    metrics_port: int

    def engine(self) -> psutil.Process:
        (core,) = [
            child
            for child in self.process.children()
            if "EngineCore" in " ".join(child.cmdline()) and child.status() != "zombie"
        ]
        return core

    def is_serving(self) -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportArgumentType]
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=300).status
        return status == health_pb2.HealthCheckResponse.SERVING

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of its series whose labels begin so."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        begin = f"{name}{{{labels}"
        return sum(float(line.split()[-1]) for line in lines if line.startswith(begin))

    def thread_names(self) -> list[str]:
        names = []
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):  # It has ended.
                names.append((thread / "comm").read_text().strip())
        return names

    def holds(self) -> dict[str, int]:
        """What a dead engine may leave behind."""
        return {
            "processes": len(self.process.children(recursive=True)),
            "contexts": sum(name == CONTEXT_THREAD for name in self.thread_names()),
            "fds": self.process.num_fds(),
            "threads": self.process.num_threads(),
            "rings": Path(f"/proc/{self.process.pid}/maps").read_text().count("actserve-"),
            "MiB": self.process.memory_info().rss >> 20,
        }


def orphans() -> set[str]:
    """Rings that lie in shared memory and no process has mapped. What OpenMP registers there, and
    semaphores of Python that go with the server, cannot be told from those of other engines."""
    maps = []
    for process in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # It has ended.
            maps.append(process.read_text())
    used = "".join(maps)
    return {str(path) for path in Path("/dev/shm").glob("actserve-*/ring") if str(path) not in used}


def wait_for(what: Callable[[], bool], within_s: float) -> float:
    """Seconds until it holds."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics_port = free.getsockname()[1]
    options = {**OPTIONS, "metrics-port": metrics_port}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "actserve_server", "serve", "--enforce-eager", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        ready, port = threading.Event(), 0

        def read() -> None:
            nonlocal port
            assert process.stderr is not None
            for line in process.stderr:
                print(line, end="")
                if line.startswith("{") and (told := json.loads(line))["event"] == "serving":
                    port = told["port"]
                    ready.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert ready.wait(START_WITHIN_S)
            yield Server(psutil.Process(process.pid), port, metrics_port)
        finally:
            process.terminate()
            process.wait(300)
            reader.join()


@dataclass(frozen=True, eq=False)
class Answer:
    tokens: list[int]
    rows: list[np.ndarray] = field(default_factory=list)


def plain(client: actserve.Client) -> Answer:
    made = client.generate("The capital of France is", temperature=0.0, max_tokens=12)
    return Answer(list(made.token_ids))


def steered(client: actserve.Client) -> Answer:
    push = actserve.Add(SITE, np.linspace(-1, 1, WIDTH), coefficient=8.0)
    made = client.generate(
        "I saw the film and", SITE, intervene=push, temperature=0.0, max_tokens=12
    )
    return Answer(list(made.token_ids), [made.activations[SITE]])


def captured(client: actserve.Client) -> Answer:
    ablated = actserve.Ablate("resid_post.6", np.linspace(1, 2, WIDTH))
    sites = [f"resid_post.{layer}" for layer in range(0, 30, 5)]
    acts = client.fetch("Napoleon crowned himself emperor in 1804", sites, intervene=ablated)
    return Answer(list(acts.token_ids), [acts[site] for site in sites])


def weights(client: actserve.Client) -> Answer:
    return Answer([], [client.token_rows("unembedding", [5, 6, 7])])


ASKED: dict[str, Callable[[actserve.Client], Answer]] = {
    "plain": plain,
    "steered": steered,
    "captured": captured,
    "weights": weights,
}


def assert_same(name: str, answer: Answer, alone: Answer) -> None:
    assert answer.tokens == alone.tokens, name
    for rows, wanted in zip(answer.rows, alone.rows, strict=True):
        error = np.linalg.norm(rows - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert error.max() < TOLERANCE, name


@dataclass
class Caller:
    """Asks for the same again and again, and once more where its client gave up trying."""

    server: Server
    name: str
    alone: Answer
    answers: int = 0
    failure: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with actserve.Client(f"127.0.0.1:{self.server.port}", timeout=CALL_S) as client:
                while not self.stop.is_set():
                    self._ask(client)
        except BaseException as error:
            self.failure = error

    def _ask(self, client: actserve.Client) -> None:
        try:
            answer = ASKED[self.name](client)
        except actserve.Unavailable as error:
            if error.reason != "ENGINE_DEAD" or not error.retry_after:
                raise
            self.stop.wait(min(error.retry_after, 1.0))
            return
        assert_same(self.name, answer, self.alone)
        self.answers += 1


def test_an_engine_killed_under_load_is_served_again_and_nothing_is_left_of_it(
    server: Server,
) -> None:
    with actserve.Client(f"127.0.0.1:{server.port}", timeout=CALL_S) as client:
        alone = {name: ask(client) for name, ask in ASKED.items()}
        kept = client.fetch("It stays", SITE, keep=actserve.Keep(ttl=KEPT_S)).kept
    callers = [Caller(server, name, alone[name]) for name in ASKED for _ in range(2)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    held: list[dict[str, int]] = []
    left_by_others = orphans()
    try:
        for kill in range(KILLS):
            before = [caller.answers for caller in callers]
            time.sleep(BETWEEN_KILLS_S)
            wait_for(
                lambda before=before: all(
                    caller.answers > count or caller.failure is not None
                    for caller, count in zip(callers, before, strict=True)
                ),
                SERVED_WITHIN_S,
            )
            held.append(server.holds())
            dead = server.engine()
            dead.kill()
            noticed = wait_for(lambda: not server.is_serving(), NOTICED_WITHIN_S)
            served = wait_for(server.is_serving, SERVED_WITHIN_S)
            print(f"kill {kill}: noticed in {noticed:.1f} s, served after {served:.1f} s more")
            print(f"held before: {held[-1]}")
            assert server.engine().pid != dead.pid
    finally:
        for caller in callers:
            caller.stop.set()
        for thread in threads:
            thread.join()
    assert [caller.failure for caller in callers] == [None] * len(callers)
    # The kills came amid calls, whose clients tried again.
    assert server.metric("actserve_rejections_total", 'reason="ENGINE_DEAD"') >= KILLS
    with actserve.Client(f"127.0.0.1:{server.port}", timeout=CALL_S) as client:
        for name, ask in ASKED.items():
            assert_same(name, ask(client), alone[name])
        assert kept is not None
        assert client.kept(kept).name == kept
    held.append(server.holds())
    print(f"held at last: {held[-1]}")
    assert server.metric("actserve_engine_restarts_total") == KILLS
    first, last = held[0], held[-1]
    assert orphans() <= left_by_others
    for thing in ("processes", "rings"):
        assert last[thing] <= first[thing], (thing, held)
    # What the last dead engine held may stay until the next has died, and what holds it goes with
    # the last call that it cut; more would add up.
    assert all(each["contexts"] <= first["contexts"] + 1 for each in held), held
    # Those of calls come and go, and pools of threads fill up.
    for thing in ("fds", "threads"):
        assert last[thing] < first[thing] + FEW_ENGINES_HOLD + KILLS, (thing, held)
