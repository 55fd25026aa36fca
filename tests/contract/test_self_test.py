"""A server tests its engine before it serves, and tells clients what it withdrew."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import (
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    site_pb2,
)
from actserve_server import app
from actserve_server.config import ConfigError, Settings
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.storage.database import Database
from tests.contract.harness import collect, failure, fetch, intervention, matrices, site
from tests.unit.tiny_engine import TinyEngine, honest

TAPS = {
    HookPoint.Q: lambda batch, site, rows: (rows, np.roll(rows, 1, axis=0)),
    HookPoint.MLP_OUT: lambda batch, site, rows: (rows, honest(batch, site, rows)[1]),
}
"""Queries come a token late; and what is done to `mlp_out` is only shown."""
Q, MLP_OUT = site_pb2.HOOK_POINT_Q, site_pb2.HOOK_POINT_MLP_OUT
OPTIONS: dict[str, Any] = {"model": "tiny", "port": 0, "metrics_port": 0}
REFUSED = grpc.StatusCode.FAILED_PRECONDITION


@asynccontextmanager
async def proven(engine: TinyEngine) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that starts as the program does."""
    served = app.build(engine, Settings(**OPTIONS))
    await served.prove()
    await served.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            yield channel
    finally:
        await served.close()


def generation(channel: grpc.aio.Channel) -> generation_service_pb2_grpc.GenerationServiceStub:
    return generation_service_pb2_grpc.GenerationServiceStub(channel)


async def test_what_failed_is_listed_with_its_reason() -> None:
    async with proven(TinyEngine(TAPS)) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        (model,) = (await stub.ListModels(model_service_pb2.ListModelsRequest())).models
    unserved = {at.hook_point: at.unserved_reason for at in model.hook_points if at.unserved_reason}
    assert unserved.keys() == {Q}
    assert unserved[Q].startswith("failed the self-test: with other tokens after it, at q.0 row ")
    fixed = {at.hook_point for at in model.hook_points if at.unchangeable_reason}
    assert fixed == {MLP_OUT, site_pb2.HOOK_POINT_LOGITS}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            fetch(capture={"sites": [site(2, Q)]}),
            "q.2 is not served for tiny: failed the self-test",
        ),
        (
            fetch(interventions=[intervention(site(0, MLP_OUT), zero={})]),
            "mlp_out.0 cannot be changed for tiny: failed the self-test",
        ),
    ],
    ids=["capture", "change"],
)
async def test_what_failed_is_refused(request_: pb.FetchActivationsRequest, says: str) -> None:
    engine = TinyEngine(TAPS)
    async with proven(engine) as channel:
        tested = len(engine.runs)
        refused = await failure(generation(channel).FetchActivations(request_))
    assert (refused.code, refused.reason) == (REFUSED, "SITE_NOT_SERVED")
    assert says in refused.message
    assert len(engine.runs) == tested


async def test_what_passed_is_served() -> None:
    async with proven(TinyEngine(TAPS)) as channel:
        request = fetch(capture={"sites": [site(0, MLP_OUT), site(2)]})
        rows = matrices(await collect(generation(channel).FetchActivations(request)))
    assert [rows[0, index][1].shape for index in range(2)] == [(5, 16)] * 2


async def test_a_server_whose_engine_fails_a_run_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(TinyEngine):
        async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
            raise ActserveError(Reason.CAPTURE_INCOMPLETE, "a row was lost")
            yield

    engine = Failing()

    async def load(settings: Settings, database: Database) -> app.App:
        return app.build(engine, settings, database=database)

    monkeypatch.setattr(app, "_load", load)
    monkeypatch.setattr(app.logs, "configure", lambda level: None)
    with pytest.raises(ConfigError, match="failed its self-test as a whole: a row was lost"):
        await app.serve(Settings(**OPTIONS))
    assert engine.closed


async def test_the_port_opens_when_the_engine_has_been_tested_and_not_before() -> None:
    """A probe, or a client, that finds it open would else wait for an answer in vain."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def is_open() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    served = app.build(TinyEngine(), Settings(**{**OPTIONS, "port": port}))
    try:
        assert not await is_open()
        await served.prove()
        assert not await is_open()
        await served.start()
        assert await is_open()
    finally:
        await served.close()
