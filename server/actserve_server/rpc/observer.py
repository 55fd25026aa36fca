"""What happens around every call of the service: an id, error mapping, metrics, one log line.

Handlers are wrapped as coroutines that write, not as generators. grpc.aio leaves a generator parked
at `yield` to the garbage collector when a call is cancelled; here the cancellation arrives in this
coroutine, which closes the servicer's generator before it returns, and with it the run.

Health and reflection calls pass through untouched: probes would drown the calls that matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc import errors, metrics
from actserve_server.rpc.calls import Call, enter_call, well_formed
from actserve_server.rpc.unknown_fields import refuse_unknown_fields

SERVICES = "/actserve."
"""Methods that start so are observed."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Details: TypeAlias = grpc.HandlerCallDetails
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[Details], Awaitable[Handler | None]]"

log = structlog.get_logger("actserve.rpc")


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request whose bytes are not the message they should be."""

    message: str


class Observer(grpc.aio.ServerInterceptor):
    async def intercept_service(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(SERVICES):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        trace = well_formed(_text(metadata.get("traceparent")))
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _observe_unary(handler.unary_unary, method, trace),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _observe_stream(handler.unary_stream, method, trace),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        raise NotImplementedError(f"{method} streams requests, which nothing here does yet")


def _observe_unary(behaviour: Any, method: str, trace: str | None) -> Any:
    async def observed(request: Message | Malformed, context: Context) -> Message:
        async with _Observation(method, "unary", trace, context) as observation:
            response = await behaviour(observation.received(request), context)
            observation.sent()
            return response
        raise AssertionError("an observation does not swallow errors")

    return observed


def _observe_stream(behaviour: Any, method: str, trace: str | None) -> Any:
    async def observed(request: Message | Malformed, context: Context) -> None:
        async with _Observation(method, "server_stream", trace, context) as observation:
            responses: AsyncGenerator[Message, None] | Awaitable[None]
            responses = behaviour(observation.received(request), context)
            if not isinstance(responses, AsyncGenerator):
                await responses  # A handler that writes by itself, such as a refusal.
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)
                    observation.sent()

    return observed


class _Observation:
    """One call, from its first byte to its status."""

    def __init__(self, method: str, grpc_type: str, trace: str | None, context: Context) -> None:
        _, service, name = method.split("/", 2)
        self._labels = (grpc_type, service, name)
        self._method = method
        self._context = context
        self._call = Call(traceparent=trace)
        self._started = time.perf_counter()

    async def __aenter__(self) -> _Observation:
        enter_call(self._call)
        # In the trailers, not the headers: once headers are sent, clients no longer retry a call
        # that is refused.
        self._context.set_trailing_metadata((("x-request-id", self._call.id),))
        metrics.STARTED.labels(*self._labels).inc()
        return self

    def received(self, request: Message | Malformed) -> Message:
        if isinstance(request, Malformed):
            raise ActserveError(Reason.REQUEST_MALFORMED, request.message)
        metrics.RECEIVED.labels(*self._labels).inc()
        refuse_unknown_fields(request)
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
                foreseen = errors.foreseen(error)
                code = errors.code_of(foreseen)
                await errors.abort(self._context, foreseen)
        finally:
            self._record(code)

    def _cancel_code(self) -> grpc.StatusCode:
        left = self._context.time_remaining()
        expired = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED

    def _record(self, code: grpc.StatusCode) -> None:
        seconds = time.perf_counter() - self._started
        metrics.HANDLED.labels(*self._labels, _go_name(code)).inc()
        metrics.HANDLING_SECONDS.labels(*self._labels).observe(seconds)
        call = self._call
        log.info(
            "call",
            method=self._method,
            code=code.name,
            reason=call.reason or None,
            duration_s=round(seconds, 4),
            request_id=call.id,
            trace_id=call.trace_id,
            peer=self._context.peer(),
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
            activation_bytes=call.activation_bytes,
        )


def _lenient(deserialize: Callable[[bytes], Message] | None) -> Any:
    """A deserializer whose failure reaches the handler; grpc itself would answer INTERNAL."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Message | Malformed:
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed(
                f"the request's {len(data)} bytes are not the Protocol Buffers message of this "
                "method; use a client generated from the served contract"
            )

    return parse


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
