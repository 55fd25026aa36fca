"""What callers with bad manners cost: those without a token, those who send the largest messages
that may be sent, and those who stop reading. Each meets a server in a process of its own, while
another process asks for health and tells how long it waited.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from rich.console import Console
from rich.table import Table

import actserve
from actserve.v1 import generation_service_pb2, generation_service_pb2_grpc
from actserve_server.config import Settings
from actserve_server.rpc.server import SERVICES
from actserve_server.rpc.transport.request_messages import MAX_PARTS
from bench.servers import ServerProcess, served

TOKEN = "a-token-of-the-benchmark"
UNREAD_BYTES = 64 << 20
"""Of a message without a token."""
LARGEST_BYTES: int = Settings.model_fields["max_request_bytes"].default
STALL_TIMEOUT_S = 10.0
"""`reader_timeout_s` of the server that a reader stalls."""
STALLED_PROMPTS, STALLED_SITES, STALLED_TOKENS = 300, 25, 16
CORPUS_ITEMS, CORPUS_TOKENS = 1000, 16

_PROBE = """
import json, sys, time
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
health = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}"))
waits = []
health.Check(health_pb2.HealthCheckRequest())
print("ready", flush=True)
while True:
    started = time.perf_counter()
    health.Check(health_pb2.HealthCheckRequest())
    print(time.perf_counter() - started, flush=True)
    time.sleep(0.002)
"""


@dataclass(frozen=True, slots=True)
class Met:
    """What one kind of call cost the server, and others."""

    name: str
    reason: str
    """That it was refused with; empty if it was not."""
    server_ms: float
    """From the call's start to its end, as the server logs it; the longest of several."""
    health_wait_ms: float
    """The longest that another process waited for health meanwhile."""
    growth_mb: float
    """How much more memory the server had meanwhile than before, at most."""


@dataclass(frozen=True, slots=True)
class Stall:
    """What a reader that stops costs another caller, who generates a few tokens at a time."""

    alone_ms: float
    """Median of the other's calls before."""
    computing_ms: float
    """While the stalled call's prompts still run."""
    stalled_ms: float
    """While it is stalled."""
    ended_with: str
    """The reason that the reader is told once it reads on."""
    freed_after_s: float
    """When nothing was held for it any longer, from when it stopped."""
    alone_again_ms: float


@dataclass(frozen=True, slots=True)
class DoorFigures:
    refused: list[Met]
    """Without a token, `UNREAD_BYTES` of empty parts, gzipped: one for each RPC."""
    largest: list[Met]
    """With a token: the largest that may be sent, of several shapes."""
    stall: Stall
    corpus: Met
    """One fetch of many items at all layers."""
    corpus_sent_mb: float


def measure_door(model: str, dtype: str, progress: Console) -> DoorFigures:
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.yaml"
        known = hashlib.sha256(TOKEN.encode()).hexdigest()
        tokens.write_text(f"- {{sha256: {known}, tenant: bench, role: experimenter}}\n")
        with served("--model", "fake", "--token-file", str(tokens)) as server:
            refused = [_refused(server, method) for method in _methods()]
            for met in refused:
                progress.print(met)
            largest = [_sent(server, *shape) for shape in _shapes().items()]
    options = ["--model", model, "--dtype", dtype, "--reader-timeout-s", str(STALL_TIMEOUT_S)]
    with served(*options) as server:
        with actserve.Client(f"127.0.0.1:{server.port}") as client:
            width = client.models()[0].width
        largest.append(_sent(server, "matrices", _matrices(width)))
        for met in largest:
            progress.print(met)
        corpus, sent = _corpus(server)
        progress.print(corpus)
        stall = _stall(server)
        progress.print(stall)
    return DoorFigures(refused, largest, stall, corpus, sent)


def door_tables(figures: DoorFigures) -> list[Table | str]:
    stall = figures.stall
    return [
        _calls_table(
            "64 MiB without a token, gzipped (aims: 50 ms, 100 ms, 64 MiB)", figures.refused
        ),
        _calls_table(
            "The largest messages with a token (aim: health within 250 ms)", figures.largest
        ),
        _calls_table(
            f"One fetch at all layers, {figures.corpus_sent_mb:.0f} MB of rows", [figures.corpus]
        ),
        (
            f"another caller's generate: alone {stall.alone_ms:.0f} ms; while a fetch that nobody "
            f"reads computes {stall.computing_ms:.0f} ms, stalled {stall.stalled_ms:.0f} ms; it "
            f"was freed after {stall.freed_after_s:.1f} s and ended with {stall.ended_with}; then "
            f"{stall.alone_again_ms:.0f} ms"
        ),
    ]


def _calls_table(title: str, calls: Sequence[Met]) -> Table:
    table = Table(title=title)
    for column in ("call", "ended with", "server ms", "health waited ms", "memory grew MB"):
        table.add_column(column)
    for met in calls:
        numbers = (met.server_ms, met.health_wait_ms, met.growth_mb)
        table.add_row(met.name, met.reason, *(f"{number:.0f}" for number in numbers))
    return table


def _methods() -> Iterator[MethodDescriptor]:
    """Of every service that is served."""
    for name in SERVICES:
        yield from descriptor_pool.Default().FindServiceByName(name).methods


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _refused(server: ServerProcess, method: MethodDescriptor) -> Met:
    """Empty parts of the first field that is a message, such as turns, else of the first field."""
    fields = method.input_type.fields
    field = next((each for each in fields if each.type == each.TYPE_MESSAGE), fields[0])
    part = bytes([field.number << 3 | 2, 0])
    message = part * (UNREAD_BYTES // len(part))
    return _met(server, method.name, lambda channel: _call(channel, method, message))


def _call(channel: grpc.Channel, method: MethodDescriptor, message: bytes) -> object:
    how = grpc.Compression.Gzip
    if method.server_streaming:
        return list(channel.unary_stream(_path(method))(message, compression=how))
    return channel.unary_unary(_path(method))(message, compression=how)


def _shapes() -> dict[str, Any]:
    """Requests of Generate that are as large as they may be, by what they are made of."""
    request = generation_service_pb2.GenerateRequest
    user = {"role": "user", "content": "a"}
    tool = {"json": json.dumps({"a": [1] * 20_000})}
    return {
        "empty turns": request(prompt={"conversation": {"turns": [{}] * (MAX_PARTS - 10)}}),
        "turns of a word": request(
            prompt={"conversation": {"turns": [user] * (MAX_PARTS // 3 - 10)}}
        ),
        "token ids": request(prompt={"token_ids": {"ids": [1] * (32 * (MAX_PARTS - 10))}}),
        "text": request(prompt={"text": "a " * (LARGEST_BYTES // 2 - 1000)}),
        "tools": request(
            prompt={
                "conversation": {"turns": [user], "tools": [tool] * (LARGEST_BYTES // 60_000 - 100)}
            }
        ),
    }


def _matrices(width: int) -> Any:
    """As many square matrices as fit into a request, each to be orthogonalized."""
    square = np.random.default_rng(0).standard_normal((width, width)).astype("<f4")
    rows = {"element_type": "ELEMENT_TYPE_F32", "shape": square.shape, "data": square.tobytes()}
    intervention = {
        "sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 1}],
        "project": {"directions": {"tensor": rows}},
    }
    count = min(64, (LARGEST_BYTES - 10_000) // (square.nbytes + 100))
    return generation_service_pb2.GenerateRequest(
        prompt={"text": "a"}, interventions=[intervention] * count, sampling={"max_tokens": 1}
    )


def _sent(server: ServerProcess, name: str, request: Any) -> Met:
    def call(channel: grpc.Channel) -> object:
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
        return list(stub.Generate(request, metadata=(("authorization", f"Bearer {TOKEN}"),)))

    return _met(server, name, call)


def _corpus(server: ServerProcess) -> tuple[Met, float]:
    """With the megabytes of rows that were sent."""
    with actserve.Client(f"127.0.0.1:{server.port}") as client:
        layers = client.models()[0].layer_count
    random = np.random.default_rng(0)
    request = generation_service_pb2.FetchActivationsRequest(
        items=[
            {"prompt": {"token_ids": {"ids": random.integers(1000, 40_000, CORPUS_TOKENS)}}}
            for _ in range(CORPUS_ITEMS)
        ],
        readouts=[_rows(range(layers))],
    )
    sent = 0

    def call(channel: grpc.Channel) -> None:
        nonlocal sent
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
        for event in stub.FetchActivations(request):
            sent += len(event.activations.rows.data)

    return _met(server, f"{CORPUS_ITEMS} items", call, times=1), sent / 1e6


def _rows(layers: range) -> Any:
    sites = [{"hook_point": "HOOK_POINT_RESID_POST", "layer": layer} for layer in layers]
    return {"rows": {"sites": sites}}


def _stall(server: ServerProcess) -> Stall:
    random = np.random.default_rng(1)
    request = generation_service_pb2.FetchActivationsRequest(
        items=[
            {"prompt": {"token_ids": {"ids": random.integers(1000, 40_000, STALLED_TOKENS)}}}
            for _ in range(STALLED_PROMPTS)
        ],
        readouts=[_rows(range(STALLED_SITES))],
    )
    with (
        actserve.Client(f"127.0.0.1:{server.port}") as client,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", options=_OWN) as channel,
    ):

        def wait_ms() -> float:
            started = time.perf_counter()
            client.generate("The capital of France is", max_tokens=8, temperature=0.0)
            return (time.perf_counter() - started) * 1e3

        alone = [wait_ms() for _ in range(20)]
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
        stream = stub.FetchActivations(request)
        next(event for event in stream if event.HasField("activations"))
        stopped, logged = time.monotonic(), len(server.calls)
        computing, stalled = [], []
        held = server.metric(_HELD)
        while held:
            runs = server.metric(_RUNNING)
            (computing if runs else stalled).append(wait_ms())
            held = server.metric(_HELD)
            if time.monotonic() - stopped > 20 * STALL_TIMEOUT_S:
                raise RuntimeError(f"after {20 * STALL_TIMEOUT_S:g} s, {held:g} bytes are held")
        freed_after_s = time.monotonic() - stopped
        again = [wait_ms() for _ in range(20)]
        for _ in _until_error(stream):
            pass
        time.sleep(0.1)
        (call,) = [each for each in server.calls[logged:] if "Fetch" in each["method"]]
        return Stall(
            alone_ms=statistics.median(alone),
            computing_ms=_median(computing),
            stalled_ms=_median(stalled),
            ended_with=str(call["reason"]),
            freed_after_s=freed_after_s,
            alone_again_ms=statistics.median(again),
        )


_HELD, _RUNNING = "actserve_capture_reserved_bytes", "actserve_runs_in_flight"


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")


def _until_error(stream: Any) -> Iterator[Any]:
    with suppress(grpc.RpcError):
        yield from stream


def _met(
    server: ServerProcess, name: str, call: Callable[[grpc.Channel], object], times: int = 3
) -> Met:
    """What a call costs that is made so many times."""
    durations, waits, growth, reason = [], [], 0.0, ""
    for _ in range(times):
        logged = len(server.calls)
        with (
            _waits(server) as waited,
            _growth(server) as grown,
            # A channel of its own: others may have been closed by the call before.
            grpc.insecure_channel(f"127.0.0.1:{server.port}", options=_OWN) as channel,
        ):
            try:
                call(channel)
            except grpc.RpcError as error:
                reason = str(error.code().name)  # pyright: ignore[reportAttributeAccessIssue]
            time.sleep(0.1)  # For the log, and the last wait.
        durations += [each["duration_s"] for each in server.calls[logged:]]
        reason = next((each["reason"] for each in server.calls[logged:] if each["reason"]), reason)
        waits += waited
        growth = max(growth, *grown)
    return Met(name, reason, max(durations, default=0) * 1e3, max(waits) * 1e3, growth)


_OWN = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
"""A connection of its own, over which anything can be sent."""


@contextmanager
def _waits(server: ServerProcess) -> Iterator[list[float]]:
    """Seconds that another process waited for each answer; complete when it is left."""
    probe = subprocess.Popen(
        [sys.executable, "-c", _PROBE, str(server.port)], stdout=subprocess.PIPE, text=True
    )
    assert probe.stdout is not None
    probe.stdout.readline()
    waits: list[float] = []
    reader = threading.Thread(target=lambda: waits.extend(map(float, probe.stdout or ())))
    reader.start()
    try:
        yield waits
    finally:
        probe.terminate()
        reader.join()
        probe.wait()


@contextmanager
def _growth(server: ServerProcess) -> Iterator[list[float]]:
    """How many megabytes more the server's own process had than when it was entered, every 10
    ms."""
    process = psutil.Process(server.pid)
    before, grown, done = process.memory_info().rss, [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            grown.append((process.memory_info().rss - before) / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()
