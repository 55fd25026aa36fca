"""The door for browsers in front of a scripted server: what comes over HTTP goes on as gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import grpc

from actserve_server.http.http_server import HttpListening, HttpServer
from actserve_server.rpc.server import DESCRIPTORS
from actserve_server.rpc.transport.methods import Methods
from actserve_server.rpc.web import web_door

OWN = ("host", "connection", "content-", "accept", "grpc-", "te", "transfer-")
"""Beginnings of headers that are of one way alone."""


class WebFront:
    """A door at `port`, to the server that it is told."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._methods = _Forwarding()
        self._http = HttpServer(
            HttpListening(
                host="127.0.0.1",
                port=0,
                max_body_bytes=1 << 20,
                max_connections=1000,
                reader_timeout_s=0,
            )
        )
        door = web_door.make(DESCRIPTORS, self._methods, 32 << 20)
        self._http.mount(web_door.PREFIX, door, bounds_bodies=True)
        self._run(self._http.start())

    def to(self, port: int) -> int:
        """The port of the door, which leads to the server on `port` from now on."""
        self._run(self._methods.lead_to(port))
        return self._http.port

    def close(self) -> None:
        self._run(self._methods.close())
        self._run(self._http.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class _Forwarding(Methods):
    """Answers calls by those of a channel."""

    def __init__(self) -> None:
        super().__init__(())
        self._channel: grpc.aio.Channel | None = None

    async def lead_to(self, port: int) -> None:
        await self.close()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def handler(self, details: Any) -> Any:
        metadata = [pair for pair in details.invocation_metadata if not pair[0].startswith(OWN)]
        channel = self._channel
        assert channel is not None

        async def forward(_messages: object, context: Any) -> None:
            call = channel.unary_stream(details.method)(
                await context.read(), metadata=metadata, timeout=context.time_remaining()
            )
            try:
                async for data in call:
                    await context.write(_Raw(data))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details(), _pairs(error))
            except asyncio.CancelledError:
                call.cancel()
                raise
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))

        return grpc.stream_stream_rpc_method_handler(forward)


def _pairs(error: grpc.aio.AioRpcError) -> tuple[Any, ...]:
    return tuple(error.trailing_metadata())


class _Raw:
    """A message as it came."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self._data
