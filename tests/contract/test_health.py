"""Health and reflection, which tools use before they know anything of this service."""

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actserve_server.rpc.server import SERVICES
from tests.contract.harness import Served, eventually, generate, serving

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
