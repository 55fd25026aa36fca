"""The door for browsers: every service over Connect and gRPC-Web, by the library `connectrpc`.

The library knows the protocols: envelopes, statuses, deadlines, a client that is gone. What a call
is answered with are the handlers that gRPC has, with all that stands around them. They decide from
the headers alone who calls, and only then is a message read; the library leaves it as bytes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from connectrpc.interceptor import MetadataInterceptor
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from actserve_server.http.connections import client_certificate
from actserve_server.http.exchanges import Asgi, AsgiMessage, Receive, Scope, Send
from actserve_server.rpc.transport.methods import Methods
from actserve_server.rpc.web.web_call import Received, WebCall

PREFIX = "/actserve.v1."
"""Of all paths of the door."""


def make(services: Sequence[ServiceDescriptor], methods: Methods, max_request_bytes: int) -> Asgi:
    """The application that answers calls of these services by `methods`."""
    calls = _Calls(methods)
    app = _App(
        service=calls,
        endpoints=lambda calls: {
            f"/{service.full_name}/{method.name}": calls.endpoint(method)
            for service in services
            for method in service.methods
        },
        interceptors=[calls],
        read_max_bytes=max_request_bytes,
        # Rows are all but incompressible, and what is unpacked may be many times what was sent.
        compressions=(),
        codecs=[_Bytes("proto"), _Bytes("json")],
    )

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        telling = _telling(scope, send)
        if content_type.partition(b";")[0].strip() in _GRPC or content_type.startswith(_GRPC_PLUS):
            # It needs trailers, which HTTP/1.1 as it is spoken here has not.
            await telling({"type": "http.response.start", "status": 415, "headers": []})
            await telling({"type": "http.response.body", "body": b""})
            return
        _certificate.set(client_certificate(scope))
        await app(scope, receive, telling)  # pyright: ignore[reportArgumentType]

    return door


def _telling(scope: Scope, send: Send) -> Send:
    """Sends what the library answers; where that is a status alone, with an error of Connect's that
    says what was wrong."""
    body: bytes | None = None

    async def telling(message: AsgiMessage) -> None:
        nonlocal body
        if message["type"] == "http.response.start":
            content_type = dict(message["headers"]).get(b"content-type")
            if message["status"] in _WHY and content_type is None:
                why = _WHY[message["status"]].format(path=scope["path"][:200])
                body = json.dumps({"code": "unimplemented", "message": why}).encode()
                kept = [each for each in message["headers"] if each[0].lower() not in _REPLACED]
                told = (b"content-type", b"application/json"), (b"accept-post", _FORMS)
                length = (b"content-length", str(len(body)).encode())
                message = {**message, "headers": [*kept, *told, length]}
        elif body is not None:
            message, body = {**message, "body": body}, b""
        await send(message)

    return telling


_WHY = {
    404: "there is no method {path}; the contract's are /actserve.v1.SERVICE/METHOD",
    405: "{path} is called by POST alone, so that no link can call it",
    415: "{path} does not take that content type; send application/json or application/proto, or, "
    "where the answer is a stream, application/connect+json, application/connect+proto or "
    "application/grpc-web+proto. Plain gRPC has a port of its own",
}
_REPLACED = frozenset({b"content-length", b"accept-post"})


_certificate: ContextVar[bytes | None] = ContextVar("actserve_client_certificate", default=None)
"""What the client of the request has shown, which the library does not hand on."""

_GRPC = (b"application/grpc",)
_GRPC_PLUS = b"application/grpc+"
_FORMS = (
    b"application/json, application/proto, application/connect+json, application/connect+proto, "
    b"application/grpc-web+json, application/grpc-web+proto"
)


class _App(ConnectASGIApplication["_Calls"]):
    @property
    def path(self) -> str:
        return PREFIX


class _Bytes:
    """Leaves messages as they are on the wire; handlers read and write them."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def encode(self, message: bytes) -> bytes:
        return message

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Received:
        del message_class
        return Received(bytes(data), self._name == "json")


class _Details(NamedTuple):
    """What handlers are found by, as `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class _Calls(MetadataInterceptor[WebCall]):
    """The calls in progress. The library asks first, with their headers, and again with their
    messages."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._by_request: dict[RequestContext, WebCall] = {}

    async def on_start(self, ctx: RequestContext) -> WebCall:
        path = f"/{ctx.method.service_name}/{ctx.method.name}"
        details: Any = _Details(path, tuple(ctx.request_headers.allitems()))
        handler = await self._methods.handler(details)
        assert handler is not None, f"{path} has an endpoint and no handler"
        call = WebCall(handler, ctx.method.input, ctx, _certificate.get())
        try:
            await call.begin()
        except BaseException as error:
            await call.end(error if isinstance(error, Exception) else None)
            raise
        self._by_request[ctx] = call
        return call

    async def on_end(self, token: WebCall, ctx: RequestContext, error: Exception | None, /) -> None:
        del self._by_request[ctx]
        await token.end(error)

    def endpoint(self, method: MethodDescriptor) -> Any:
        """What a call of the method is answered by, once its message is there."""
        info = MethodInfo(
            name=method.name,
            service_name=method.containing_service.full_name,
            input=_message(method.input_type.full_name),
            output=_message(method.output_type.full_name),
            # Also of those without side effects, which could be called by a link otherwise.
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
        )
        if method.server_streaming:
            return Endpoint.server_stream(info, self._stream)
        return Endpoint.unary(info, self._unary)

    def _stream(self, request: Any, ctx: RequestContext) -> AsyncIterator[Any]:
        return self._by_request[ctx].answers(request)

    async def _unary(self, request: Any, ctx: RequestContext) -> Any:
        answers = [answer async for answer in self._by_request[ctx].answers(request)]
        (only,) = answers
        return only


def _message(name: str) -> type[Message]:
    pool = descriptor_pool.Default()
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
