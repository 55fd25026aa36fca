"""What happens when something around a server fails: docs/failures.md says it in a table.

Each test shows what callers see, that calls which have nothing to do with it go on, and that it is
over when the cause is. What an engine that dies does is in test_restarted_engine.py.
"""

import asyncio
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme

from actserve.errors import from_rpc
from actserve.v1 import (
    generation_service_pb2_grpc,
    kept_activations_service_pb2,
    kept_activations_service_pb2_grpc,
    monitor_service_pb2,
    monitor_service_pb2_grpc,
    steering_vector_service_pb2_grpc,
)
from actserve.v1 import steering_vector_service_pb2 as vector_pb
from actserve_server import open_files
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from actserve_server.storage import database_places
from actserve_server.storage.database_places import FILE
from tests.contract import monitors
from tests.contract.harness import (
    Served,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    kinds,
    serving,
    site,
)
from tests.contract.program import Program
from tests.contract.test_flow import ENDLESS, everything_is_free
from tests.contract.test_transport import Certificates
from tests.contract.vectors import create, full
from tests.postgres_cluster import Cluster

WITHIN_S = 30.0
SHIFTED_CLOCK = """
import os, time
def shifted(real, unit, path):
    def now():
        return real() + int(open(path).read() or 0) * unit
    return now
time.time = shifted(time.time, 1, {path!r})
time.time_ns = shifted(time.time_ns, 10**9, {path!r})
"""
"""A wall clock that is as many seconds wrong as a file says."""


FILES = open_files.SPARE_FILES + open_files.FEWEST_CONNECTIONS
FEW_FILES = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
"""


class Server:
    """A server as a process, with what fails around it."""

    def __init__(self, folder: Path) -> None:
        self.data, self.audit, self._clock = folder / "data", folder / "audit", folder / "clock"
        self._clock.write_text("")
        self.program = Program(
            f"--data-dir={self.data}",
            f"--audit-log={self.audit}",
            first=FEW_FILES + SHIFTED_CLOCK.format(path=str(self._clock)),
        )
        self.port = self.program.port
        self.process = psutil.Process(self.program.process.pid)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.generation: Any = generation_service_pb2_grpc.GenerationServiceStub(self.channel)
        self.vectors: Any = steering_vector_service_pb2_grpc.SteeringVectorServiceStub(self.channel)
        self.kept: Any = kept_activations_service_pb2_grpc.KeptActivationsServiceStub(self.channel)
        self.monitors: Any = monitor_service_pb2_grpc.MonitorServiceStub(self.channel)

    def logged(self, event: str, **fields: Any) -> bool:
        lines = [line for line in list(self.program.lines) if line["event"] == event]
        return any(fields.items() <= line.items() for line in lines)

    def shift_clock(self, seconds: int) -> None:
        # At once, so that nobody reads half of it.
        new = self._clock.with_suffix(".new")
        new.write_text(str(seconds))
        os.replace(new, self._clock)

    def generates(self) -> None:
        assert kinds(self.generation.Generate(generate(), timeout=WITHIN_S))[-1] == "finished"

    def stop(self) -> None:
        self.channel.close()
        self.program.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("failures"))
    yield made
    made.stop()


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(call: Callable[[], Any]) -> str:
    """The reason; empty where it was not refused."""
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc(error, "").reason or error.code().name
    return ""


def test_a_full_disk_stores_nothing_and_ends_nothing_else(server: Server) -> None:
    server.vectors.CreateSteeringVector(create("before"))
    running = server.generation.Generate(generate(sampling={"max_tokens": 100}))
    next(running)
    # No file of the process can grow any more, the database's and the audit log among them.
    _, most = server.process.rlimit(resource.RLIMIT_FSIZE)
    server.process.rlimit(resource.RLIMIT_FSIZE, (1, most))
    try:
        assert refused(lambda: server.vectors.CreateSteeringVector(create("during"))) == (
            "STORE_UNREACHABLE"
        )
        wait_for(lambda: server.logged("audit log", ok=False))
        wait_for(lambda: server.logged("store", ok=False))
        server.generates()
        assert kinds(running)[-1] == "finished"
    finally:
        server.process.rlimit(resource.RLIMIT_FSIZE, (most, most))
    wait_for(lambda: not refused(lambda: server.vectors.CreateSteeringVector(create("after"))))
    wait_for(lambda: server.logged("store", ok=True))
    wait_for(lambda: server.logged("audit log", ok=True))
    page = server.vectors.ListSteeringVectors(vector_pb.ListSteeringVectorsRequest())
    names = {each.name for each in page.steering_vectors}
    assert (full("before") in names, full("during") in names) == (True, False)


def test_more_connections_than_there_are_files_for_are_closed_and_open_ones_go_on(
    server: Server,
) -> None:
    running = server.generation.Generate(generate(sampling={"max_tokens": 100}))
    next(running)
    with ExitStack() as connections:
        for _ in range(FILES):
            opened = socket.create_connection(("127.0.0.1", server.port), WITHIN_S)
            connections.enter_context(closing(opened))
        wait_for(lambda: not _greets(server.port))
        server.generates()
        # What takes a file of its own is served too.
        assert not refused(lambda: server.vectors.CreateSteeringVector(create("many")))
        assert server.process.num_fds() < FILES
        assert kinds(running)[-1] == "finished"
    # Once they are closed there is room again for others.
    wait_for(lambda: _greets(server.port))


def _greets(port: int) -> bool:
    """Whether a new connection is served: a server of HTTP/2 speaks first."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as opened:
        opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        return bool(opened.recv(1))
    return False


def test_a_clock_that_jumps_ends_no_call_and_frees_nothing_before_its_time(server: Server) -> None:
    server.monitors.CreateMonitor(monitors.create(upper={"threshold": -1e6, "flag": True}))
    watch = server.monitors.WatchAlerts(
        monitor_service_pb2.WatchAlertsRequest(model="models/fake"), timeout=120
    )
    assert next(watch).HasField("started")
    keeping = fetch("hello", capture={"sites": [site()], "keep": {"ttl": {"seconds": 600}}})
    events = list(server.generation.FetchActivations(keeping))
    (name,) = [
        each.name
        for event in events
        if event.WhichOneof("event") == "item_finished"
        for each in event.item_finished.kept
    ]
    get = kept_activations_service_pb2.GetKeptActivationsRequest(name=name)
    day, told = 24 * 3600, 0
    for jump in (day, -day, 0):
        running = server.generation.Generate(generate(sampling={"max_tokens": 30}))
        next(running)
        server.shift_clock(jump)
        assert kinds(running)[-1] == "finished"
        assert server.kept.GetKeptActivations(get).kept_activations.name == name
        alert = next(each for each in watch if each.HasField("alert"))
        told += alert.alert.monitor == monitors.full("harm")
    assert told == 3
    watch.cancel()


def test_told_to_stop_under_load_a_server_takes_no_more_and_loses_no_call(server: Server) -> None:
    watch = server.monitors.WatchAlerts(
        monitor_service_pb2.WatchAlertsRequest(model="models/fake"), timeout=120
    )
    assert next(watch).HasField("started")
    running = [
        server.generation.Generate(generate(sampling={"max_tokens": 100})) for _ in range(16)
    ] + [server.generation.FetchActivations(fetch(*"abcdefgh"))]
    for each in running:
        next(each)
    server.program.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.logged("draining"))
    assert refused(lambda: list(server.generation.Generate(generate()))) == "DRAINING"
    # What has no end of its own is ended, and does not use up the grace.
    assert refused(lambda: list(watch)) == "DRAINING"
    assert {kinds(each)[-1] for each in running} == {"finished"}
    assert server.program.wait(WITHIN_S) == 0
    wait_for(lambda: server.logged("stopped"))


STREAM = """
import sys, actserve
client = actserve.Client(sys.argv[1])
for event in client.stream("hello", "resid_post.1", max_tokens=100_000, ignore_eos=True):
    print("begun", flush=True)
"""


async def test_a_client_that_is_killed_leaves_nothing_behind() -> None:
    limits = Limits(max_sequence_tokens=200_000)
    async with serving(FakeEngine(token_delay_s=0.005, limits=limits)) as served:
        other = served.generation.Generate(generate(sampling={**ENDLESS, "max_tokens": 300}))
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STREAM, f"127.0.0.1:{served.app.port}"),
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        assert await client.stdout.readline() == b"begun\n"
        await eventually(lambda: served.app.engine.reserved_bytes > 0, within_s=WITHIN_S)
        client.kill()
        await eventually(lambda: served.app.engine.reserved_bytes == 0, within_s=WITHIN_S)
        # The call of another client goes on.
        assert kinds(await collect(other))[-1] == "finished"
        await eventually(lambda: everything_is_free(served), within_s=WITHIN_S)
        await client.wait()


async def stores(served: Served, name: str) -> bool:
    call = served.vectors.CreateSteeringVector(create(name))
    return await call.code() is grpc.StatusCode.OK


async def what_watches_calls_is_read(served: Served) -> None:
    """As it is soon after the start. Before, a call is refused rather than left unwatched."""
    assert kinds(await collect(served.generation.Generate(generate())))[-1] == "finished"


async def is_refused(served: Served, name: str) -> None:
    """Of what is to be stored alone; what needs no database goes on."""
    error = await failure(served.vectors.CreateSteeringVector(create(name)))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNREACHABLE")
    assert error.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert kinds(await collect(served.generation.Generate(generate())))[-1] == "finished"
    assert kinds(await collect(served.generation.FetchActivations(fetch())))[-1] == "finished"


async def names(served: Served) -> set[str]:
    page = await served.vectors.ListSteeringVectors(vector_pb.ListSteeringVectorsRequest())
    return {each.name for each in page.steering_vectors}


async def test_a_postgresql_that_stops_and_starts_is_used_again(
    postgres: Cluster, database_url: str
) -> None:
    async with serving(database_url=database_url) as served:
        assert await stores(served, "before")
        await what_watches_calls_is_read(served)
        postgres.stop()
        try:
            await is_refused(served, "during")
        finally:
            postgres.start()
        await eventually(lambda: stores(served, "after"), within_s=WITHIN_S)
        assert await names(served) == {full("before"), full("after")}


async def test_a_folder_that_goes_and_comes_back_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    async with serving(data_dir=data) as served:
        assert await stores(served, "before")
        await what_watches_calls_is_read(served)
        os.rename(data, away)
        await is_refused(served, "during")
        # Nor is another one made in its place, such as on the disk below one that is not mounted.
        assert not data.exists()
        os.rename(away, data)
        await eventually(lambda: stores(served, "after"), within_s=WITHIN_S)
        assert await names(served) == {full("before"), full("after")}
        shutil.rmtree(data)
        await is_refused(served, "never")


async def test_a_database_that_takes_too_long_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_places, "BUSY_TIMEOUT_S", 1)
    async with serving(data_dir=tmp_path) as served:
        assert await stores(served, "before")
        await what_watches_calls_is_read(served)
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await is_refused(served, "during")
            other.execute("ROLLBACK")
        await eventually(lambda: stores(served, "after"), within_s=WITHIN_S)


async def test_a_certificate_that_is_changed_cuts_no_stream(tmp_path: Path) -> None:
    pair = Certificates(tmp_path)
    options = {"host": "localhost", "tls_cert": pair.cert, "tls_key": pair.key}
    async with (
        serving(FakeEngine(token_delay_s=0.005), **options) as served,
        grpc.aio.secure_channel(f"localhost:{served.app.port}", pair.credentials()) as channel,
    ):
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
        running = stub.Generate(generate(sampling={"max_tokens": 1000, "ignore_eos": True}))
        await running.read()
        assert served.app._listening.tls is not None
        before = served.app._listening.tls.files.current
        issued = trustme.CA().issue_cert("localhost")
        pair.cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        pair.key.write_bytes(issued.private_key_pem.bytes())
        files = served.app._listening.tls.files
        await eventually(lambda: files.current is not before, within_s=WITHIN_S)
        assert kinds(await collect(running))[-1] == "finished"
