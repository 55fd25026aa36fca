"""What happens around every call of the service: who calls, an id, error mapping, metrics, one log
line.

Who calls is decided first, from the metadata. A call that is refused then has its message neither
read nor parsed: its handler takes the shape of one that streams requests, and gRPC hands those
nothing that they do not ask for. All other handlers take that shape too, so that the message is
read here, where it can be bounded, and not by gRPC on the event loop before any code of ours.

Handlers are wrapped as coroutines that write, not as generators. grpc.aio leaves a generator parked
at `yield` to the garbage collector when a call is cancelled; here the cancellation arrives in this
coroutine, which closes the servicer's generator before it returns, and with it the run.

Health stays open, since Kubernetes' probes carry no token. Health and reflection calls that may be
made pass through untouched: probes would drown the calls that matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from actserve_server import traces
from actserve_server.domain.errors import ActserveError
from actserve_server.engine.fair_threads import CALLER
from actserve_server.rpc.transport import metrics, statuses
from actserve_server.rpc.transport.auth import Authenticate
from actserve_server.rpc.transport.call_limit import CallLimit
from actserve_server.rpc.transport.calls import Call, enter_call, well_formed
from actserve_server.rpc.transport.request_messages import receive
from actserve_server.rpc.transport.stalled_readers import write

SERVICES = "/actserve."
"""Methods that start so are observed."""
HEALTH = "/grpc.health.v1.Health/"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Details: TypeAlias = grpc.HandlerCallDetails
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[Details], Awaitable[Handler | None]]"

log = structlog.get_logger("actserve.rpc")


class Observer(grpc.aio.ServerInterceptor):
    def __init__(
        self, authenticate: Authenticate, limit: CallLimit, reader_timeout_s: float | None
    ) -> None:
        self._authenticate = authenticate
        self._limit = limit
        self._reader_timeout_s = reader_timeout_s

    async def intercept_service(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(HEALTH):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        call = Call(traceparent=well_formed(_text(metadata.get("traceparent"))))
        refusal = None
        try:
            call.principal = self._authenticate(metadata)
        except ActserveError as error:
            refusal = error
        if method.startswith(SERVICES):
            if handler.response_streaming:
                timeout_s = self._reader_timeout_s
                observed = _observe_stream(handler, method, call, self._limit, refusal, timeout_s)
            else:
                observed = _observe_unary(handler, method, call, self._limit, refusal)
            return _reading(handler, observed)
        return handler if refusal is None else _reading(handler, _refuse(refusal))


def _reading(handler: Handler, behaviour: Any) -> Handler:
    """Answers as `handler` does, and reads the request by itself, as bytes."""
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, None, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(behaviour, None, handler.response_serializer)


def _refuse(refusal: ActserveError) -> Any:
    async def refuse(_messages: object, context: Any) -> None:
        await statuses.abort(context, refusal)

    return refuse


def _observe_unary(
    handler: Any, method: str, call: Call, limit: CallLimit, refusal: ActserveError | None
) -> Any:
    async def observed(_messages: object, context: Context) -> Message:
        async with _Observation(method, "unary", call, limit, context) as observation:
            request = await observation.received(handler, refusal)
            response = await handler.unary_unary(request, context)
            observation.sent()
            return response
        raise AssertionError("an observation does not swallow errors")

    return observed


def _observe_stream(
    handler: Any,
    method: str,
    call: Call,
    limit: CallLimit,
    refusal: ActserveError | None,
    reader_timeout_s: float | None,
) -> Any:
    async def observed(_messages: object, context: Context) -> None:
        async with _Observation(method, "server_stream", call, limit, context) as observation:
            request = await observation.received(handler, refusal)
            responses: AsyncGenerator[Message, None]
            responses = handler.unary_stream(request, context)
            async with aclosing(responses):
                async for response in responses:
                    await write(context, response, reader_timeout_s)
                    observation.sent()

    return observed


class _Observation:
    """One call, from its first byte to its status."""

    def __init__(
        self, method: str, grpc_type: str, call: Call, limit: CallLimit, context: Context
    ) -> None:
        _, service, name = method.split("/", 2)
        self._labels = (grpc_type, service, name)
        self._method = method
        self._context = context
        self._call = call
        self._limit = limit
        self._counted = False
        self._started = time.perf_counter()
        self._spanning = ExitStack()

    async def __aenter__(self) -> _Observation:
        enter_call(self._call)
        span = traces.call_span(self._method, self._call.id, self._call.traceparent)
        self._span = self._spanning.enter_context(span)
        CALLER.set(self._call.principal.account or self._context.peer())
        self._context.set_trailing_metadata(statuses.told_at_the_end(self._call))
        metrics.STARTED.labels(*self._labels).inc()
        return self

    async def received(self, handler: Any, refusal: ActserveError | None) -> Message | None:
        """The request; None for a handler that cannot parse it, and does not want it read. Raises
        the refusal, if there is one, or that there are too many calls, before it is read."""
        if refusal is not None:
            raise refusal
        self._limit.enter(self._call.principal.account)
        self._counted = True
        if handler.request_deserializer is None:
            return None
        method = self._method[1:].replace("/", ".")
        kind = descriptor_pool.Default().FindMethodByName(method).input_type
        request = await receive(self._context, handler.request_deserializer, kind)
        metrics.RECEIVED.labels(*self._labels).inc()
        return request

    def sent(self) -> None:
        metrics.SENT.labels(*self._labels).inc()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code = grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN
        try:
            if isinstance(error, asyncio.CancelledError):
                code = self._cancel_code()
            elif isinstance(error, grpc.aio.AbortError):
                code = _status_code(self._context)
            elif isinstance(error, Exception):
                foreseen = statuses.foreseen(error)
                code = statuses.code_of(foreseen)
                await statuses.abort(self._context, foreseen)
        finally:
            if self._counted:
                self._limit.leave(self._call.principal.account)
            self._record(code)
            self._spanning.close()

    def _cancel_code(self) -> grpc.StatusCode:
        left = self._context.time_remaining()
        expired = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED

    def _record(self, code: grpc.StatusCode) -> None:
        seconds = time.perf_counter() - self._started
        metrics.HANDLED.labels(*self._labels, _go_name(code)).inc()
        metrics.HANDLING_SECONDS.labels(*self._labels).observe(seconds)
        call = self._call
        metrics.TOKENS.labels("prompt").inc(call.prompt_tokens)
        metrics.TOKENS.labels("output").inc(call.output_tokens)
        self._span.ended(code.value[0], call.reason)
        log.info(
            "call",
            method=self._method,
            code=code.name,
            reason=call.reason or None,
            duration_s=round(seconds, 4),
            request_id=call.id,
            trace_id=call.trace_id,
            tenant=call.principal.tenant or None,
            peer=self._context.peer(),
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
            activation_bytes=call.activation_bytes,
        )


def _status_code(context: Context) -> grpc.StatusCode:
    code: Any = context.code()  # grpc.aio keeps the enum or its number, depending on the path.
    if isinstance(code, grpc.StatusCode):
        return code
    by_number = {item.value[0]: item for item in grpc.StatusCode}
    return by_number.get(code, grpc.StatusCode.UNKNOWN)


def _go_name(code: grpc.StatusCode) -> str:
    """The code as Go spells it, since dashboards for these metrics do."""
    if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        return {"OK": "OK", "CANCELLED": "Canceled"}[code.name]
    return code.name.title().replace("_", "")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
