"""Health and reflection, which tools use before they know anything of this service."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actserve_server.rpc.server import SERVICES
from actserve_server.rpc.transport import health_service, health_watches
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
    monkeypatch.setattr(health_watches, "MAX_WATCHES", 2)
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


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_a_call_whose_message_does_not_come_is_ended(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_service, "MESSAGE_WITHIN_S", 0.05)
    async with serving() as served:
        never = served.channel.stream_stream(f"/grpc.health.v1.Health/{method}")()
        ended = await failure(never)
        assert ended.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not served.app.rpc._health.watches
        assert await health(served) == SERVING


async def test_connections_that_never_send_what_they_ask_keep_probes_from_nobody() -> None:
    path = "/grpc.health.v1.Health/Check"
    async with serving(health_port=0) as served, AsyncExitStack() as connections:

        async def connected() -> grpc.aio.Channel:
            # Else they would share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            address = f"127.0.0.1:{served.app.rpc.health_port}"
            return await connections.enter_async_context(
                grpc.aio.insecure_channel(address, options)
            )

        never: list[Any] = []
        for _ in range(10):
            channel = await connected()
            await channel.channel_ready()
            never += [channel.stream_unary(path)() for _ in range(4)]
            for each in never[-4:]:
                await each.wait_for_connection()
        channel: Any = await connected()
        probe: Any = health_pb2_grpc.HealthStub(channel)
        assert (await probe.Check(health_pb2.HealthCheckRequest())).status == SERVING
        for each in never:
            each.cancel()


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_a_name_that_is_not_served_is_refused_and_holds_nothing(method: str) -> None:
    async with serving() as served:
        request = health_pb2.HealthCheckRequest(service="other")
        refused = await failure(getattr(served.health, method)(request))
        assert refused.code is grpc.StatusCode.NOT_FOUND
        assert not served.app.rpc._health.watches


async def test_one_connection_has_a_few_watches() -> None:
    async with serving() as served:
        watches = [
            served.health.Watch(health_pb2.HealthCheckRequest())
            for _ in range(health_watches.MAX_WATCHES_OF_CONNECTION)
        ]
        for each in watches:
            assert (await each.read()).status == SERVING
        more = await failure(served.health.Watch(health_pb2.HealthCheckRequest()))
        assert more.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "this connection" in more.message


async def test_whoever_has_most_watches_gives_way_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_watches, "MAX_WATCHES", 4)
    addresses = iter(["greedy", "modest", "greedy", "greedy", "new", "greedy"])
    monkeypatch.setattr(health_watches, "_address", lambda _: next(addresses))
    async with serving() as served:

        async def watching() -> Any:
            watch = served.health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            return watch

        _, modest, _, newest = [await watching() for _ in range(4)]
        new = await watching()
        ended = await failure(newest)
        assert ended.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        again = await failure(served.health.Watch(health_pb2.HealthCheckRequest()))
        assert again.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        served.engine.faults.dead = True
        for each in (modest, new):
            assert (await each.read()).status == NOT_SERVING


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::/64"),
        ("ipv6:[2001:db8::2]:50001", "2001:db8::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::/64"),
        ("ipv6:[::ffff:192.0.2.1]:50000", "192.0.2.1"),
        ("unix:/run/socket", ""),
    ],
)
def test_the_address_of_a_peer_is_that_of_its_host(peer: str, address: str) -> None:
    assert health_watches._address(peer) == address


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
        watching = served.app.rpc._health.watches
        _, writer = await asyncio.open_connection("127.0.0.1", served.app.port)
        writer.write(WATCHES_AND_READS_NOTHING)
        await eventually(lambda: len(watching) == 1, within_s=5)
        served.engine.faults.dead = True

        async def is_not_serving() -> bool:
            return await health(served) == NOT_SERVING

        await eventually(is_not_serving, within_s=5)
        # And the server can be told to stop.
        async with asyncio.timeout(10):
            await served.app.drain()
        writer.close()
