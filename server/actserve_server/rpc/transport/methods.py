"""What is served, by the path of its calls, with what happens around every call.

Both doors, gRPC's own and that of the web, find the handlers of calls here, so that a call is
authenticated, counted, logged and refused in one way, whichever it comes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import grpc

from actserve_server.rpc.transport.observer import Continuation, Details, Handler


class Methods:
    """Takes the servicers that the generated `add_..._to_server` functions add."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        """The first of them stands around all others."""
        self.interceptors = tuple(interceptors)
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers += handlers

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server that was made with the same interceptors serve all of it, too."""
        server.add_generic_rpc_handlers(self._handlers)

    async def handler(self, details: Details) -> Handler | None:
        """What a call with these details is answered by; None where there is no such method."""
        found: Continuation = self._find
        for interceptor in reversed(self.interceptors):
            found = partial(interceptor.intercept_service, found)
        return await found(details)

    async def _find(self, details: Details) -> Handler | None:
        for each in self._handlers:
            if handler := each.service(details):
                return handler
        return None
