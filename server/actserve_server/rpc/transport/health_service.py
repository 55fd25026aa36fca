"""Health (grpc.health.v1), which anybody may ask for, without a token.

That of gRPC's own package writes to those who watch while it holds what a change of health takes:
one who watches and reads nothing would keep the server from telling anybody that it is not well,
and from stopping when it is told to. Here each has a place for the newest status, and reads it when
it wants.

The message of a call is read here too, and not by gRPC, which would wait for one that never comes.
"""

import asyncio
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from actserve_server.rpc.transport.health_watches import HealthWatches, WatchesFullError

MESSAGE_WITHIN_S = 2.0
"""In which the message of a call comes: clients send it with the call."""

_Base: Any = health.aio.HealthServicer  # pyright: ignore[reportAttributeAccessIssue]
_Context = grpc.aio.ServicerContext[Any, Any]


class HealthService(_Base):
    def __init__(self) -> None:
        super().__init__()
        self.watches = HealthWatches()

    async def check(self, _messages: object, context: _Context) -> health_pb2.HealthCheckResponse:
        """Answers Check."""
        return await self.Check(await self._asked(context), context)

    async def watch(self, _messages: object, context: _Context) -> None:
        """Answers Watch: tells the status, and each that it changes to, but for those that nobody
        has read before the next."""
        try:
            # Over when the place goes to somebody else, also while nothing is read.
            async with asyncio.timeout(None) as until:
                place = self.watches.take(context.peer(), until)
                try:
                    await self._tell(await self._asked(context), context)
                finally:
                    self.watches.leave(place)
        except WatchesFullError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "health is watched by too many, and your address has most of the watches, so this "
                "one was ended; watch it less often, or ask by Check",
            )

    async def _tell(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        newest = _Newest()
        watching = asyncio.create_task(self.Watch(request, newest))
        try:
            while True:
                await context.write(await newest.read())
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _asked(self, context: _Context) -> health_pb2.HealthCheckRequest:
        """The message of a call, which is refused if there is none, or it names what is not served:
        names do not change, so that there would be nothing to wait for."""
        data = None
        try:
            async with asyncio.timeout(MESSAGE_WITHIN_S):
                data = await context.read()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no message came within {MESSAGE_WITHIN_S:g} s of the call; send it with the call",
            )
        if not isinstance(data, bytes):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the call carries no message; send one"
            )
        request = health_pb2.HealthCheckRequest()
        try:
            request.ParseFromString(data)
        except DecodeError:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the {len(data)} bytes are not a HealthCheckRequest; send one",
            )
        if request.service not in self._server_status:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"{request.service[:100]!r} is not served; leave the name out for the whole server",
            )
        return request


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


def answering(service: HealthService, *methods: str) -> grpc.GenericRpcHandler:
    """Answers these methods of health. They take the shape of those that stream requests, to which
    gRPC hands nothing that they do not ask for."""
    serialize = health_pb2.HealthCheckResponse.SerializeToString
    handlers = {
        "Check": grpc.stream_unary_rpc_method_handler(service.check, None, serialize),
        "Watch": grpc.stream_stream_rpc_method_handler(service.watch, None, serialize),
    }
    chosen = {method: handlers[method] for method in methods}
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, chosen)
