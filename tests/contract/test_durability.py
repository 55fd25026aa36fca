"""A server that is killed at any moment keeps what it has acknowledged, and nothing by halves.

`make durability` kills it 200 times on each database; `DURABILITY_KILLS` says how often.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import sqlalchemy as sa
from grpc_status import rpc_status

from actserve.v1 import (
    generation_service_pb2_grpc,
    monitor_service_pb2_grpc,
    steering_vector_service_pb2_grpc,
)
from actserve.v1 import monitor_service_pb2 as monitors_pb
from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import place
from actserve_server.storage.tables import steering_vector_contents, steering_vectors
from tests.contract import monitors
from tests.contract.harness import decoded, generate
from tests.contract.program import Program
from tests.contract.vectors import create, full, rows

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
KILLS = int(os.environ.get("DURABILITY_KILLS", "10"))
WRITERS = 4
MOST_S = 0.3
"""After which a server is killed at the latest, from the first write on."""


Vectors = steering_vector_service_pb2_grpc.SteeringVectorServiceStub


def raise_unless_killed(error: grpc.RpcError) -> None:
    # Not by an answer of the server: then it was not killed yet.
    if error.code() is not UNAVAILABLE or rpc_status.from_call(error):  # pyright: ignore[reportArgumentType]
        raise error


@dataclass
class Ledger:
    """What one writer has been told."""

    writer: int
    random: random.Random
    there: dict[str, pb.CreateSteeringVectorRequest] = field(default_factory=dict)
    """What was acknowledged, and not deleted since."""
    creating: pb.CreateSteeringVectorRequest | None = None
    """What was asked for when the server was killed."""
    deleting: str = ""
    made: int = 0
    deleted: int = 0

    def write(self, service: steering_vector_service_pb2_grpc.SteeringVectorServiceStub) -> None:
        """Creates and deletes until the server is gone."""
        while True:
            try:
                if self.random.random() < len(self.there) / 10:
                    self.deleting = self.random.choice(list(self.there))
                    service.DeleteSteeringVector(
                        pb.DeleteSteeringVectorRequest(name=full(self.deleting)), timeout=10
                    )
                    del self.there[self.deleting]
                    self.deleted += 1
                else:
                    self.creating = self._new()
                    service.CreateSteeringVector(self.creating, timeout=10)
                    self.there[self.creating.steering_vector_id] = self.creating
                    self.made += 1
            except grpc.RpcError as error:
                raise_unless_killed(error)
                return
            self.creating, self.deleting = None, ""

    def _new(self) -> pb.CreateSteeringVectorRequest:
        number = self.random.getrandbits(48)
        # Of few different contents, so that some are shared when a server is killed.
        values = rows(3, seed=self.random.randrange(6))
        return create(f"w{self.writer}-{number}", values, labels={"by": str(self.writer)})


def check(
    ledgers: list[Ledger], service: steering_vector_service_pb2_grpc.SteeringVectorServiceStub
) -> None:
    """What is there is what was acknowledged, whole; what was under way is there or not, and can
    be asked for again."""
    found = listed(service)
    assert set(found) >= {name for each in ledgers for name in each.there if name != each.deleting}
    allowed = {name for each in ledgers for name in each.there}
    allowed |= {each.creating.steering_vector_id for each in ledgers if each.creating}
    assert set(found) <= allowed
    for each in ledgers:
        if each.creating:
            service.CreateSteeringVector(each.creating, timeout=30)
            each.there[each.creating.steering_vector_id] = each.creating
        if each.deleting and each.deleting in found:
            service.DeleteSteeringVector(
                pb.DeleteSteeringVectorRequest(name=full(each.deleting)), timeout=30
            )
        each.there.pop(each.deleting, None)
        each.creating, each.deleting = None, ""
        for name, request in each.there.items():
            got = service.GetSteeringVector(
                pb.GetSteeringVectorRequest(name=full(name), with_elements=True), timeout=30
            )
            assert np.array_equal(decoded(got.elements), decoded(request.rows.tensor))
            assert got.steering_vector.labels == request.labels
    assert set(listed(service)) == {name for each in ledgers for name in each.there}


def listed(
    service: steering_vector_service_pb2_grpc.SteeringVectorServiceStub,
) -> list[str]:
    found, token = [], ""
    while token or not found:
        page = service.ListSteeringVectors(
            pb.ListSteeringVectorsRequest(page_size=1000, page_token=token), timeout=30
        )
        found += [each.name.rpartition("/")[2] for each in page.steering_vectors]
        token = page.next_page_token
        if not token:
            break
    return found


@contextmanager
def running(flags: list[str]) -> Iterator[tuple[Program, grpc.Channel]]:
    program = Program(*flags)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{program.port}") as channel:
            yield program, channel
    finally:
        program.stop()


async def check_contents(store: dict[str, str]) -> None:
    """Elements are there for every vector, and for nothing else."""
    folder = store.get("data_dir")
    database = Database(place(store.get("database_url"), Path(folder) if folder else None))
    try:

        def read(connection: sa.Connection) -> tuple[set[bytes], set[bytes]]:
            used = connection.execute(sa.select(steering_vectors.c.content_sha256)).scalars()
            held = connection.execute(sa.select(steering_vector_contents.c.sha256)).scalars()
            return set(map(bytes, used)), set(map(bytes, held))

        used, held = await database.read(read)
        assert used == held
    finally:
        database.close()


Watched = monitor_service_pb2_grpc.MonitorServiceStub
ALWAYS = monitors.create("always", request_id="always", upper={"threshold": -1000.0, "flag": True})
"""Raises an alert in every sample."""


@dataclass
class MonitorLedger:
    """What one writer of monitors has been told."""

    random: random.Random
    there: dict[str, monitors_pb.CreateMonitorRequest] = field(default_factory=dict)
    """What was acknowledged, and not deleted since."""
    creating: monitors_pb.CreateMonitorRequest | None = None
    """What was asked for when the server was killed."""
    deleting: str = ""

    def write(self, channel: grpc.Channel) -> None:
        """Creates and deletes until the server is gone."""
        service = Watched(channel)
        while True:
            try:
                if self.random.random() < len(self.there) / 10:
                    self.deleting = self.random.choice(list(self.there))
                    service.DeleteMonitor(
                        monitors_pb.DeleteMonitorRequest(name=monitors.full(self.deleting)),
                        timeout=10,
                    )
                    del self.there[self.deleting]
                else:
                    self.creating = self._new()
                    service.CreateMonitor(self.creating, timeout=10)
                    self.there[self.creating.monitor_id] = self.creating
            except grpc.RpcError as error:
                raise_unless_killed(error)
                return
            self.creating, self.deleting = None, ""

    def check(self, channel: grpc.Channel, found: set[str]) -> set[str]:
        """Checks what is there, and asks again for what was under way. Returns what is there of
        it then."""
        service = Watched(channel)
        assert found >= self.there.keys() - {self.deleting}
        if self.creating:
            service.CreateMonitor(self.creating, timeout=30)
            self.there[self.creating.monitor_id] = self.creating
        if self.deleting and self.deleting in found:
            service.DeleteMonitor(
                monitors_pb.DeleteMonitorRequest(name=monitors.full(self.deleting)), timeout=30
            )
        self.there.pop(self.deleting, None)
        self.creating, self.deleting = None, ""
        for name, request in self.there.items():
            got = service.GetMonitor(
                monitors_pb.GetMonitorRequest(name=monitors.full(name)), timeout=30
            ).monitor
            assert got.labels == request.monitor.labels
            assert got.probes[0].site == request.monitor.probes[0].site
        if self.there:
            # It can watch by what is stored.
            name = self.random.choice(list(self.there))
            generate_one(channel, monitors=[monitors.full(name)])
        return set(self.there)

    def _new(self) -> monitors_pb.CreateMonitorRequest:
        name = f"m{self.random.getrandbits(48)}"
        labels = {"number": str(self.random.random())}
        return monitors.create(name, request_id=name, watch={"named_only": True}, labels=labels)


@dataclass
class AlertLedger:
    """Calls whose answer was complete, each of which has raised an alert."""

    calls: set[str] = field(default_factory=set)

    def write(self, channel: grpc.Channel) -> None:
        """Generates until the server is gone."""
        while True:
            try:
                self.calls.add(generate_one(channel))
            except grpc.RpcError as error:
                raise_unless_killed(error)
                return


def generate_one(channel: grpc.Channel, **changes: Any) -> str:
    """The id of a call that generates a token, once it is complete."""
    request = generate(sampling={"max_tokens": 1, "temperature": 0}, **changes)
    stub = generation_service_pb2_grpc.GenerationServiceStub(channel)
    events = list(stub.Generate(request, timeout=30))
    assert any(each.HasField("alert") for each in events)
    assert events[-1].HasField("finished")
    return events[0].started.call_id


def listed_monitors(channel: grpc.Channel) -> set[str]:
    page = Watched(channel).ListMonitors(
        monitors_pb.ListMonitorsRequest(page_size=1000), timeout=30
    )
    assert not page.next_page_token
    return {each.name.rpartition("/")[2] for each in page.monitors} - {"always"}


def watched_calls(channel: grpc.Channel) -> list[str]:
    """The calls of all alerts, one for each."""
    found: list[str] = []
    token = ""
    while True:
        page = Watched(channel).ListAlerts(
            monitors_pb.ListAlertsRequest(page_size=1000, page_token=token), timeout=30
        )
        found += [
            each.watched_call_id for each in page.alerts if each.monitor == monitors.full("always")
        ]
        token = page.next_page_token
        if not token:
            return found


def check_watched(
    makers: list[MonitorLedger], generators: list[AlertLedger], channel: grpc.Channel
) -> None:
    """Monitors are as `check` has vectors; every call that was complete has its alert, once."""
    Watched(channel).CreateMonitor(ALWAYS, timeout=30)
    found = listed_monitors(channel)
    there = [each.check(channel, found) for each in makers]
    assert listed_monitors(channel) == set().union(*there)
    alerts = watched_calls(channel)
    assert len(alerts) == len(set(alerts))
    assert set(alerts) >= set().union(*(each.calls for each in generators))


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_what_was_acknowledged_survives_a_kill_and_nothing_is_there_by_halves(
    store: dict[str, str],
) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in store.items()]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    ledgers = [Ledger(number, random.Random(f"{seed} {number}")) for number in range(WRITERS)]
    makers = [MonitorLedger(random.Random(f"{seed} m{number}")) for number in range(2)]
    generators = [AlertLedger() for _ in range(2)]
    cut = {"vectors": 0, "monitors": 0}
    for _ in range(KILLS):
        with running(flags) as (program, channel), ThreadPoolExecutor(2 * WRITERS) as writers:
            service = Vectors(channel)
            check(ledgers, service)
            check_watched(makers, generators, channel)
            writing = [writers.submit(each.write, service) for each in ledgers]
            writing += [writers.submit(each.write, channel) for each in (*makers, *generators)]
            time.sleep(chance.uniform(0, MOST_S))
            program.process.kill()
            for each in writing:
                each.result()
            cut["vectors"] += any(each.creating or each.deleting for each in ledgers)
            cut["monitors"] += any(each.creating or each.deleting for each in makers)
    with running(flags) as (_, channel):
        check(ledgers, Vectors(channel))
        check_watched(makers, generators, channel)
    assert min(cut.values()) > KILLS / 2, f"too few kills came amid a write: {cut}"
    assert sum(each.deleted for each in ledgers) > 0
    assert sum(len(each.calls) for each in generators) > 0
    asyncio.run(check_contents(store))
