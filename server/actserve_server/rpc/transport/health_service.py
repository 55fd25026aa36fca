"""Health (grpc.health.v1), which anybody may ask for, without a token.

That of gRPC's own package writes to those who watch while it holds what a change of health takes:
one who watches and reads nothing would keep the server from telling anybody that it is not well,
and from stopping when it is told to. Here each has a place for the newest status, and reads it when
it wants.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

MAX_WATCHES = 1024
"""At once: a watch has no end. A client that has gRPC look after health has one for each
connection."""

_Base: Any = health.aio.HealthServicer  # pyright: ignore[reportAttributeAccessIssue]


class HealthService(_Base):
    def __init__(self) -> None:
        super().__init__()
        self._watches = 0

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        """Tells the status, and each that it changes to, but for those that nobody has read before
        the next."""
        if self._watches >= MAX_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"health is watched {self._watches} times, the most that may be; ask by Check",
            )
        newest = _Newest()
        watching = asyncio.create_task(super().Watch(request, newest))
        self._watches += 1
        try:
            while True:
                await context.write(await newest.read())
        finally:
            self._watches -= 1
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


class _Newest:
    """Takes what is told, and keeps the newest until it is read."""

    def __init__(self) -> None:
        self._kept: asyncio.Queue[health_pb2.HealthCheckResponse] = asyncio.Queue(1)

    async def write(self, told: health_pb2.HealthCheckResponse) -> None:
        """Waits for nobody."""
        if self._kept.full():
            self._kept.get_nowait()
        self._kept.put_nowait(told)

    async def read(self) -> health_pb2.HealthCheckResponse:
        return await self._kept.get()


def only_check(service: HealthService) -> grpc.GenericRpcHandler:
    """Answers Check alone, for probes: watches could take all the room that they have."""
    check = grpc.unary_unary_rpc_method_handler(
        service.Check,
        health_pb2.HealthCheckRequest.FromString,
        health_pb2.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check})
