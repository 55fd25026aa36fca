"""One call over HTTP, as its handler sees it and as the library of the web's protocols does.

A handler is a coroutine that reads its message and writes its answers, as gRPC has it; the library
has a message and asks for answers. So the handler runs as a task of its own, which waits with each
answer until the library has sent the one before: nothing is queued for a slow reader, and a handler
that has waited for too long can end the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.request import RequestContext
from google.protobuf.message import Message
from google.rpc import status_pb2
from protobuf import wkt

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc.transport.auth import told_of
from actserve_server.rpc.transport.observer import Handler
from actserve_server.rpc.web import json_messages

SMALL_BYTES = 4 << 10
"""Of a message that is read or written as JSON on the event loop; larger ones are in a thread."""
_DETAILS = "grpc-status-details-bin"
_EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
_CODES = {"CANCELLED": Code.CANCELED}
"""Those that are called otherwise than gRPC calls them."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    data: bytes
    is_json: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    data: bytes
    sent: asyncio.Future[None]


class WebCall:
    """Is the context of its handler, as far as the handlers of this server use one."""

    def __init__(
        self,
        handler: Handler,
        kind: type[Message],
        request: RequestContext,
        certificate: bytes | None,
    ) -> None:
        """`kind` is that of its request, and `certificate` the PEM one that its client has
        shown."""
        self._handler: Any = handler  # Its types are those of servers without asyncio.
        self._kind = kind
        self._request = request
        self._certificate = certificate
        loop = asyncio.get_running_loop()
        self._admitted = loop.create_future()
        self._received: asyncio.Future[Received | None] = loop.create_future()
        self._answers: asyncio.Queue[_Answer | None] = asyncio.Queue()
        self._is_json = False
        self._code = grpc.StatusCode.OK
        self._error: ConnectError | None = None
        self._trailers: tuple[tuple[str, str | bytes], ...] = ()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._answers.put_nowait(None))

    async def begin(self) -> None:
        """Returns once the handler wants its message. Raises ConnectError if it refuses the call
        before."""
        await asyncio.wait((self._admitted, self._task), return_when=asyncio.FIRST_COMPLETED)
        self._raise_refusal()

    async def answers(self, received: Received) -> AsyncIterator[bytes]:
        """All answers to a message. Raises ConnectError if the call fails."""
        if not self._received.done():
            self._received.set_result(received)
        while (answer := await self._answers.get()) is not None:
            yield answer.data
            if not answer.sent.done():
                answer.sent.set_result(None)
        self._raise_refusal()

    async def end(self, error: Exception | None) -> None:
        """Ends what is left. `error` is what the library ends the call with; this raises what the
        handler makes of it, if it is of the request."""
        if not self._task.done():
            self._give_up(error)
            await asyncio.wait((self._task,))
        for name, value in self._trailers:
            if isinstance(value, str):
                self._request.response_trailers[name] = value
        if error is not self._error:
            self._raise_refusal()

    def _give_up(self, error: Exception | None) -> None:
        if (
            isinstance(error, ConnectError)
            and error.code not in (Code.CANCELED, Code.DEADLINE_EXCEEDED)
            and not self._received.done()
        ):
            self._received.set_exception(_refusal(error))
        else:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            if self._handler.response_streaming:
                await self._handler.stream_stream(_NOTHING, self)
            else:
                await self.write(await self._handler.stream_unary(_NOTHING, self))
        except grpc.aio.AbortError:
            pass  # It is the error.

    def _raise_refusal(self) -> None:
        if self._task.done() and not self._task.cancelled():
            if self._error is not None:
                raise self._error
            self._task.result()

    async def read(self) -> Any:
        """The bytes of the request's message; EOF if there is none."""
        if not self._admitted.done():
            self._admitted.set_result(None)
        received = await self._received
        if received is None:
            return _EOF
        self._is_json = received.is_json
        if not received.is_json:
            return received.data
        if len(received.data) <= SMALL_BYTES:
            return json_messages.from_json(received.data, self._kind)
        return await off_loop(json_messages.from_json, received.data, self._kind)

    async def write(self, message: Message) -> None:
        """Returns once it was sent."""
        if not self._is_json:
            data = message.SerializeToString()
        elif message.ByteSize() <= SMALL_BYTES:
            data = json_messages.to_json(message)
        else:
            data = await off_loop(json_messages.to_json, message)
        sent = asyncio.get_running_loop().create_future()
        self._answers.put_nowait(_Answer(data, sent))
        await sent

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[Any, ...] = ()
    ) -> None:
        status = status_pb2.Status.FromString(dict(trailing_metadata).get(_DETAILS, b""))
        self._code = code
        self._trailers = trailing_metadata
        self._error = ConnectError(
            _CODES.get(code.name) or Code[code.name],
            details,
            [
                ErrorDetail(wkt.Any(type_url=each.type_url, value=each.value))
                for each in status.details
            ],
        )
        raise grpc.aio.AbortError(details)

    def code(self) -> grpc.StatusCode:
        return self._code

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None:
        self._trailers = trailing_metadata

    def time_remaining(self) -> float | None:
        left_ms = self._request.timeout_ms
        return None if left_ms is None else left_ms / 1000

    def auth_context(self) -> Mapping[str, tuple[bytes, ...]]:
        """As gRPC tells it."""
        return told_of(self._certificate)

    def peer(self) -> str:
        """As gRPC writes it."""
        host, _, port = (self._request.client_address or "unknown:0").rpartition(":")
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


_NOTHING: Any = None
"""In place of the stream of requests; handlers read by their context."""


def _refusal(error: ConnectError) -> ActserveError:
    """What is said of a request that the library has read, and can make no message of."""
    reason = Reason.REQUEST_MALFORMED
    if error.code is Code.RESOURCE_EXHAUSTED:
        reason = Reason.MESSAGE_TOO_LARGE
    elif "compression" in error.message:
        reason = Reason.FEATURE_NOT_SERVED
    return ActserveError(reason, f"the request cannot be read: {error.message}")
