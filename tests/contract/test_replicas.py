"""Three servers behind one address: HAProxy with the configuration that is in the repository, and a
database that they share."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import actserve
from actserve.errors import from_rpc
from actserve.v1 import generation_service_pb2_grpc
from tests.contract.harness import generate
from tests.contract.program import Program
from tests.haproxy_proxy import free_port, proxy, wait_for
from tests.postgres_cluster import Cluster

NAMES = ("a", "b", "c")
SITE = "resid_post.1"
GRACE_S = 30.0
WITHIN_S = 60.0
LONG = {"max_tokens": 150, "ignore_eos": True}
"""Three seconds of the made-up model."""

pytestmark = pytest.mark.timeout(300)


@dataclass
class Replica:
    """A server that can be started again where it was."""

    name: str
    database_url: str
    port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    program: Any = None

    def start(self) -> None:
        self.stop()
        self.program = Program(
            *(f"--port={self.port}", f"--health-port={self.health_port}"),
            *(f"--replica={self.name}", f"--drain-grace-s={GRACE_S}"),
            f"--database-url={self.database_url}",
        )

    def stop(self) -> None:
        if self.program is not None:
            self.program.stop()

    def calls(self, method: str) -> int:
        """How many have ended here."""
        lines = list(self.program.lines)
        return sum(line["event"] == "call" and line["method"].endswith(method) for line in lines)


@dataclass
class Replicas:
    address: str
    of: dict[str, Replica]

    def channel(self) -> grpc.Channel:
        # Each one with a connection of its own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(self.address, options=options)


@pytest.fixture(scope="module")
def replicas(postgres: Cluster) -> Iterator[Replicas]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres.database())
        of = {name: Replica(name, url) for name in NAMES}
        ports = {name: (each.port, each.health_port) for name, each in of.items()}
        address = stack.enter_context(proxy(ports))
        for each in of.values():
            each.start()
            stack.callback(each.stop)
        served = Replicas(address, of)
        for each in of.values():
            assert each.program.port
        wait_for(lambda: len(served_by(served)) == len(NAMES), WITHIN_S)
        yield served


def generated(channel: grpc.Channel, **sampling: object) -> list[str]:
    """The kinds of events of a generation."""
    stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
    wanted = generate(sampling={"max_tokens": 1, **sampling})
    return [each.WhichOneof("event") for each in stub.Generate(wanted, timeout=120)]


def served_by(replicas: Replicas) -> set[str]:
    """Who answers, of a few calls that keep something: the names say it."""
    with actserve.Client(replicas.address) as client:
        names = [
            client.fetch("a", SITE, keep=actserve.Keep(ttl=1)).kept for _ in range(2 * len(NAMES))
        ]
    return {str(name).removeprefix("keptActivations/").rpartition(".")[0] for name in names}


class Streams:
    """Generations that run at once, each in a thread of its own."""

    def __init__(self, replicas: Replicas, count: int) -> None:
        self.tokens = [0] * count
        self.ended: dict[int, str | grpc.RpcError] = {}
        """By number: the last event, or what ended it before that."""
        self._channel = replicas.channel()
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]
        for each in self._threads:
            each.start()
        wait_for(lambda: all(self.tokens) or len(self.ended) > 0, WITHIN_S)
        assert not self.ended

    def _read(self, number: int) -> None:
        stub = generation_service_pb2_grpc.GenerationServiceStub(self._channel)
        last = ""
        try:
            for event in stub.Generate(generate(sampling=LONG), timeout=120):
                last = event.WhichOneof("event")
                self.tokens[number] += last == "tokens"
            self.ended[number] = last
        except grpc.RpcError as error:
            self.ended[number] = error

    def wait(self) -> list["str | grpc.RpcError"]:
        for each in self._threads:
            each.join()
        self._channel.close()
        return list(self.ended.values())


def serves(replica: Replica) -> Callable[[], bool]:
    def asked() -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{replica.health_port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with suppress(grpc.RpcError):
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                return answer.status == health_pb2.HealthCheckResponse.SERVING
        return False

    return asked


def test_calls_of_one_connection_are_spread_over_all(replicas: Replicas) -> None:
    before = {name: each.calls("/Generate") for name, each in replicas.of.items()}
    assert set(Streams(replicas, 9).wait()) == {"finished"}
    took = {name: each.calls("/Generate") - before[name] for name, each in replicas.of.items()}
    assert sum(took.values()) == 9
    assert min(took.values()) >= 2


def test_what_is_stored_is_there_on_each(replicas: Replicas) -> None:
    direct = [actserve.Client(f"127.0.0.1:{each.port}") for each in replicas.of.values()]
    vector = np.ones(16, np.float32)
    with actserve.Client(replicas.address) as client:
        client.vectors.store("joy", vector, SITE)
        for each in direct:
            with each:
                assert each.vectors.get("joy").name.endswith("/joy")
        client.vectors.delete("joy")


def test_kept_rows_are_found_by_their_name_and_nowhere_else(replicas: Replicas) -> None:
    with actserve.Client(replicas.address) as client:
        kept = [client.fetch("hello", SITE, keep=actserve.Keep()).kept for _ in range(6)]
        names = [each for each in kept if each is not None]
        assert len({name.partition(".")[0] for name in names}) == len(NAMES)
        for name in names:
            assert client.kept(name).name == name
            patched = actserve.Replace(SITE, actserve.KeptRows(name), positions=[0, 1, 2, 3, 4, 5])
            client.fetch("hello", SITE, intervene=patched)
    # Without the header the proxy cannot know.
    other = next(each for name, each in replicas.of.items() if f"/{name}." not in names[0])
    with (
        actserve.Client(f"127.0.0.1:{other.port}") as client,
        pytest.raises(actserve.NotFound, match="are kept by replica"),
    ):
        client.kept(names[0])


def test_a_replica_that_is_told_to_stop_loses_no_stream_and_gets_calls_again_once_it_is_back(
    replicas: Replicas,
) -> None:
    leaving = replicas.of["b"]
    streams = Streams(replicas, 9)
    leaving.program.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(line["event"] == "draining" for line in leaving.program.lines), WITHIN_S)
    # Others take what comes meanwhile; the client makes again what came to one that was leaving.
    with actserve.Client(replicas.address) as client:
        for _ in range(12):
            client.generate("a", max_tokens=1)
    assert set(streams.wait()) == {"finished"}
    assert leaving.program.wait(GRACE_S) == 0
    assert leaving.calls("/Generate") >= 3
    leaving.start()
    wait_for(serves(leaving), WITHIN_S)
    wait_for(lambda: "b" in served_by(replicas), WITHIN_S)


def test_a_replica_that_is_killed_ends_its_own_streams_alone_and_clients_ask_another(
    replicas: Replicas,
) -> None:
    dying = replicas.of["c"]
    collected: list[actserve.Generation] = []
    with actserve.Client(replicas.address, concurrency=9) as client:

        def collect() -> None:
            collected.extend(client.generate(["a"] * 9, max_tokens=400, ignore_eos=True))

        collecting = threading.Thread(target=collect)
        collecting.start()
        streams = Streams(replicas, 9)
        dying.program.process.kill()
        ended = streams.wait()
        # A whole answer is asked for again, of another one.
        collecting.join()
    assert len(collected) == 9
    cut = [each for each in ended if isinstance(each, grpc.RpcError)]
    assert 0 < len(cut) < 9
    assert [each for each in ended if each not in cut] == ["finished"] * (9 - len(cut))
    for each in cut:
        told = from_rpc(each, replicas.address)
        assert isinstance(told, actserve.Unavailable)
    dying.start()
    wait_for(lambda: "c" in served_by(replicas), WITHIN_S)
