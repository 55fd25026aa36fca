"""What callers and operators see of an engine that dies and is started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import REGISTRY

from actserve.v1 import model_service_pb2, site_pb2
from actserve.v1.kept_activations_service_pb2 import GetKeptActivationsRequest
from actserve_server import app, cli
from actserve_server.config import Settings
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.server import LIVENESS
from actserve_server.storage.database import Database
from tests.contract.harness import (
    Served,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    intervention,
    kinds,
    serving,
    site,
)
from tests.contract.nlas import Tiny, explain
from tests.unit.test_restarting import QUICK, Restarts, Workshop
from tests.unit.tiny_engine import TinyEngine, honest

MLP_OUT, CHANGED = site_pb2.HOOK_POINT_MLP_OUT, Site(HookPoint.MLP_OUT, 0)
SERVING = health_pb2.HealthCheckResponse.SERVING
WITHIN_S = 10.0


@asynccontextmanager
async def served_from(shop: Workshop, *nlas: Any, **settings: Any) -> AsyncIterator[Served]:
    """A server of an engine of a workshop, which starts the next."""
    options = Settings(**{"port": 0, "drain_grace_s": 5.0, **settings})
    engine: Any = await shop.start()
    restarts = Restarts(QUICK, app._count_restart)
    built = app.build(engine, options, nlas, shop.start, restarts)
    await built.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{built.port}") as channel:
            yield Served(app=built, engine=engine, channel=channel)
    finally:
        await built.close()


async def healthy(served: Served, service: str = "") -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await served.health.Check(request)).status == SERVING


async def becomes(served: Served, wanted: bool) -> None:
    async def is_so() -> bool:
        return await healthy(served) == wanted

    await eventually(is_so, within_s=WITHIN_S)


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up activations add up to nothing to test."""
    monkeypatch.setattr(app, "_proven", Workshop().prove)


async def test_health_says_when_an_engine_is_dead_and_when_another_serves() -> None:
    shop = Workshop()
    async with served_from(shop) as served:
        shop.may_start.clear()
        shop.kill()
        await becomes(served, False)
        assert REGISTRY.get_sample_value("actserve_engine_healthy") == 0
        assert await healthy(served, LIVENESS), "or it would be ended before it can start again"
        shop.may_start.set()
        await becomes(served, True)
        assert REGISTRY.get_sample_value("actserve_engine_healthy") == 1


async def test_calls_meanwhile_are_told_when_to_come_back_and_then_served() -> None:
    shop = Workshop()
    async with served_from(shop) as served:
        wanted = kinds(await collect(served.generation.Generate(generate())))
        shop.may_start.clear()
        shop.kill()
        await becomes(served, False)
        for call in (
            served.generation.Generate(generate()),
            served.generation.FetchActivations(fetch()),
            served.models.Tokenize(model_service_pb2.TokenizeRequest(prompt={"text": "x"})),
        ):
            refused = await failure(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
            assert 0 < refused.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 30
        shop.may_start.set()
        await becomes(served, True)
        assert kinds(await collect(served.generation.Generate(generate()))) == wanted


async def test_a_stream_that_the_death_cuts_is_told_too() -> None:
    shop = Workshop(make=lambda: FakeEngine(token_delay_s=0.01))
    async with served_from(shop) as served:
        running = served.generation.Generate(generate(sampling={"max_tokens": 1000}))
        await running.read()
        shop.kill()
        cut = await failure(running)
        assert (cut.code, cut.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
        assert "RetryInfo" in cut.details


async def test_what_the_server_keeps_outlives_an_engine() -> None:
    shop = Workshop()
    async with served_from(shop) as served:
        rows = {Site(HookPoint.RESID_POST, 1): np.ones((3, 16), np.float32)}
        name = served.app.kept.put(rows, np.array([0, 1, 2]), ElementType.F32, None).name
        shop.may_start.clear()
        shop.kill()
        await becomes(served, False)
        shop.may_start.set()
        await becomes(served, True)
        got = await served.kept.GetKeptActivations(GetKeptActivationsRequest(name=name))
    assert got.kept_activations.name == name


@pytest.mark.parametrize("half", ["av", "ar"])
async def test_the_engines_of_an_autoencoder_come_back_as_well(half: str) -> None:
    shop = Workshop()
    halves: dict[str, Any] = {half: await shop.opened()}
    asked = explain(spec={"temperature": 0.0, "score": True})
    async with serving(None, Tiny(**halves).loaded()) as served:
        wanted = kinds(await collect(served.explanations.ExplainActivations(asked)))
        shop.may_start.clear()
        shop.kill()
        await becomes(served, False)
        refused = await failure(served.explanations.ExplainActivations(asked))
        assert (refused.reason, "RetryInfo" in refused.details) == ("ENGINE_DEAD", True)
        # The model itself goes on.
        assert kinds(await collect(served.generation.Generate(generate())))[-1] == "finished"
        shop.may_start.set()
        await becomes(served, True)
        assert kinds(await collect(served.explanations.ExplainActivations(asked))) == wanted


async def test_all_dead_engines_are_noticed_not_only_the_first() -> None:
    shops = {"model": Workshop(), "av": Workshop(), "ar": Workshop()}
    halves: dict[str, Any] = {half: await shops[half].opened() for half in ("av", "ar")}
    async with served_from(shops["model"], Tiny(**halves).loaded()) as served:
        shops["model"].may_start.clear()
        for shop in shops.values():
            shop.kill()
        await eventually(lambda: all(shop.starting == 2 for shop in shops.values()), WITHIN_S)
        shops["model"].may_start.set()
        await becomes(served, True)


async def test_restarts_are_counted() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("actserve_engine_restarts_total", {"model": "fake"}) or 0

    shop, before = Workshop(), count()
    async with served_from(shop):
        shop.kill()
        await eventually(lambda: count() == before + 1, WITHIN_S)


async def test_what_the_next_engine_does_not_prove_is_no_longer_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mortal(TinyEngine):
        dead = False

        async def check_health(self) -> None:
            if self.dead:
                raise ActserveError(Reason.ENGINE_DEAD, "the engine has stopped")

    async def start() -> Mortal:
        # What is done to `mlp_out` is only shown.
        return Mortal({HookPoint.MLP_OUT: lambda at, site, rows: (rows, honest(at, site, rows)[1])})

    monkeypatch.undo()
    first = Mortal()
    settings: dict[str, Any] = {"port": 0}
    built = app.build(first, Settings(**settings), (), start, Restarts(QUICK))
    await built.prove()
    await built.start()
    assert not built.engine.info.hook_points[HookPoint.MLP_OUT].unchangeable
    first.dead = True
    change = generate(interventions=[intervention(site(0, MLP_OUT), zero={})])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{built.port}") as channel:
        served = Served(app=built, engine=FakeEngine(), channel=channel)
        await eventually(lambda: bool(built.engine.info.at(CHANGED).unchangeable), WITHIN_S)
        refused = await failure(served.generation.Generate(change))
    await built.close()
    assert refused.reason == "SITE_NOT_SERVED"
    assert "failed the self-test" in refused.message


@pytest.mark.parametrize("held", ["may_start", "may_prove"])
async def test_a_server_drains_and_ends_while_an_engine_is_being_started(
    held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop()
    monkeypatch.setattr(app, "_proven", shop.prove)
    async with served_from(shop) as served:
        getattr(shop, held).clear()
        shop.kill()
        await becomes(served, False)
        async with asyncio.timeout(WITHIN_S):
            await served.app.drain()
            await served.app.close()
    assert all(engine.closed for engine in shop.made)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workshop], Awaitable[asyncio.Task[None]]]:
    """`serve` as the command line runs it, around engines of a workshop, once it serves."""
    built: list[app.App] = []

    async def start(shop: Workshop) -> asyncio.Task[None]:
        async def load(settings: Settings, database: Database) -> app.App:
            engine: Any = await shop.start()
            built.append(app.build(engine, settings, (), shop.start, Restarts(QUICK), database))
            return built[-1]

        monkeypatch.setattr(app, "_load", load)
        monkeypatch.setattr(app.logs, "configure", lambda level: None)
        options: dict[str, Any] = {
            "model": "made",
            "port": 0,
            "metrics_port": 0,
            "drain_grace_s": 1.0,
        }
        serving = asyncio.create_task(app.serve(Settings(**options)))
        await eventually(lambda: bool(built and built[-1].port), WITHIN_S)
        return serving

    return start


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses of exits that wait for nothing."""
    statuses: list[int] = []
    monkeypatch.setattr(app, "exit_at_once", statuses.append)
    return statuses


async def test_a_signal_ends_a_server_whose_engine_is_being_started(
    program: Any, exits: list[int]
) -> None:
    shop = Workshop()
    serving = await program(shop)
    shop.may_start.clear()
    shop.kill()
    await eventually(lambda: shop.starting == 2, WITHIN_S)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(WITHIN_S):
        await serving
    assert all(engine.closed for engine in shop.made)
    assert exits == [0]


async def test_a_server_whose_engine_does_not_start_again_ends_and_says_why(program: Any) -> None:
    shop = Workshop()
    serving = await program(shop)
    shop.fails = [RuntimeError("no memory")] * QUICK.starts
    shop.kill()
    with pytest.raises(app.EngineLostError, match="fake died and does not start again: no memory"):
        async with asyncio.timeout(WITHIN_S):
            await serving
    assert all(engine.closed for engine in shop.made)


def test_the_exit_status_of_such_a_server_has_it_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exits: list[int]
) -> None:
    async def lost(settings: Settings) -> None:
        raise app.EngineLostError("the engine of x died")

    monkeypatch.setattr(app, "serve", lost)
    cli.main(["serve", "--model", "fake"])
    assert exits == [1]
    assert capsys.readouterr().err == "actserve-server: the engine of x died\n"
