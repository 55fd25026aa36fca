"""Health and reflection, which tools use before they know anything of this service."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actserve_server.rpc.server import SERVICES
from actserve_server.rpc.transport import health_service
from tests.contract.harness import Served, eventually, failure, generate, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(served: Served, service: str = "") -> int:
    return (await served.health.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_each_service_is_serving_once_the_engine_runs(service: str) -> None:
    async with serving() as served:
        assert await health(served, service) == SERVING


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_follows_the_engine(service: str) -> None:
    async with serving() as served:
        served.engine.faults.dead = True

        async def is_not_serving() -> bool:
            return await health(served, service) == NOT_SERVING

        await eventually(is_not_serving, within_s=3)


async def test_watchers_see_the_drain_before_calls_are_refused() -> None:
    async with serving() as served:
        watch = served.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(served.app.drain())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await draining


async def test_health_turns_first_while_calls_still_run() -> None:
    async with serving() as served:
        running = served.generation.Generate(generate(sampling={"max_tokens": 2000}))
        await running.read()
        draining = asyncio.create_task(served.app.drain())

        async def is_not_serving() -> bool:
            return await health(served) == NOT_SERVING

        await eventually(is_not_serving)
        running.cancel()
        await draining


async def test_reflection_lists_the_services_and_their_files() -> None:
    async with serving() as served:
        channel: Any = served.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest
        call = stub.ServerReflectionInfo(
            iter([ask(list_services=""), ask(file_containing_symbol=SERVICES[1])])
        )
        listed, described = [answer async for answer in call]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto


async def test_watches_of_health_are_bounded_and_checks_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_service, "MAX_WATCHES", 2)
    async with serving() as served:
        watches = [served.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for each in watches:
            assert (await each.read()).status == SERVING
        more = await failure(served.health.Watch(health_pb2.HealthCheckRequest()))
        assert more.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await health(served) == SERVING
        watches[0].cancel()

        async def is_let_in() -> bool:
            watch = served.health.Watch(health_pb2.HealthCheckRequest())
            try:
                return (await watch.read()).status == SERVING
            except grpc.aio.AioRpcError:
                return False

        await eventually(is_let_in, within_s=5)


# SETTINGS with windows of no bytes for answers, and the call of a watch, as bytes of HTTP/2.
WATCHES_AND_READS_NOTHING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + bytes.fromhex("000006040000000000000400000000")
    + bytes.fromhex("0000480104000000018386041c")
    + b"/grpc.health.v1.Health/Watch"
    + bytes.fromhex("0106")
    + b"health"
    + bytes.fromhex("0f1010")
    + b"application/grpc"
    + bytes.fromhex("0002")
    + b"te"
    + bytes.fromhex("08")
    + b"trailers"
    + bytes.fromhex("0000050001000000010000000000")
)


async def test_who_watches_health_and_reads_nothing_keeps_it_from_nobody() -> None:
    async with serving() as served:
        watching = served.app.rpc._health
        _, writer = await asyncio.open_connection("127.0.0.1", served.app.port)
        writer.write(WATCHES_AND_READS_NOTHING)
        await eventually(lambda: watching._watches == 1, within_s=5)
        served.engine.faults.dead = True

        async def is_not_serving() -> bool:
            return await health(served) == NOT_SERVING

        await eventually(is_not_serving, within_s=5)
        # And the server can be told to stop.
        async with asyncio.timeout(10):
            await served.app.drain()
        writer.close()
