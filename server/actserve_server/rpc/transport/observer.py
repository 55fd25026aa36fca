"""What happens around every call of the service: who calls, an id, error mapping, metrics, one log
line.

Who calls is decided first, from the metadata and the connection. A call that is refused then has
its message neither read nor parsed: its handler takes the shape of one that streams requests, and
gRPC hands those nothing that they do not ask for. All other handlers take that shape too, so that
the message is read here, where it can be bounded, and not by gRPC on the event loop before any code
of ours.

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
from contextlib import AbstractContextManager, ExitStack, aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from actserve_server import traces
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import CALLER
from actserve_server.rpc.transport import metrics, statuses
from actserve_server.rpc.transport.audit_log import AuditLog, Ending
from actserve_server.rpc.transport.auth import Authenticate, Metadata, certificate_of, joined
from actserve_server.rpc.transport.call_changes import CallChanges
from actserve_server.rpc.transport.call_limit import CallLimit
from actserve_server.rpc.transport.calls import Call, enter_call, well_formed
from actserve_server.rpc.transport.quotas import Meter
from actserve_server.rpc.transport.request_messages import receive
from actserve_server.rpc.transport.stalled_readers import write
from actserve_server.stages import Stage
from actserve_server.traces import Attributes

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
        self,
        authenticate: Authenticate,
        limit: CallLimit,
        reader_timeout_s: float | None,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit
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
        metadata = joined(handler_call_details.invocation_metadata or ())
        call = Call(
            traceparent=well_formed(_text(metadata.get("traceparent"))),
            changes=None if self._audit is None else CallChanges(),
        )
        if not method.startswith(SERVICES):
            return _checked(handler, partial(self._authenticate, metadata))
        start = partial(
            _Observation, method, call, metadata, self._authenticate, self._limit, self._audit
        )
        if handler.response_streaming:
            return _reading(handler, _observe_stream(handler, start, self._reader_timeout_s))
        return _reading(handler, _observe_unary(handler, start))


def _reading(handler: Handler, behaviour: Any) -> Handler:
    """Answers as `handler` does, and reads the request by itself, as bytes."""
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, None, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(behaviour, None, handler.response_serializer)


def _checked(handler: Any, authenticate: Callable[[bytes | None], Awaitable[object]]) -> Handler:
    """Answers as the handler of a stream of requests does, once it is known who calls."""

    async def checked(messages: object, context: Any) -> AsyncGenerator[Message, None]:
        try:
            await authenticate(certificate_of(context))
        except ActserveError as error:
            await statuses.abort(context, error)
        async for response in handler.stream_stream(messages, context):
            yield response

    return grpc.stream_stream_rpc_method_handler(
        checked, handler.request_deserializer, handler.response_serializer
    )


def _observe_unary(handler: Any, start: Callable[..., _Observation]) -> Any:
    async def observed(_messages: object, context: Context) -> Message:
        async with start("unary", context) as observation:
            request = await observation.received(handler)
            response = await handler.unary_unary(request, context)
            observation.sent(response)
            return response
        raise AssertionError("an observation does not swallow errors")

    return observed


def _observe_stream(
    handler: Any, start: Callable[..., _Observation], reader_timeout_s: float | None
) -> Any:
    async def observed(_messages: object, context: Context) -> None:
        async with start("server_stream", context) as observation:
            request = await observation.received(handler)
            responses: AsyncGenerator[Message, None]
            responses = handler.unary_stream(request, context)
            async with aclosing(responses):
                async for response in responses:
                    with observation.sending:
                        await write(context, response, reader_timeout_s)
                    observation.sent(response)

    return observed


class _Observation:
    """One call, from its first byte to its status."""

    def __init__(
        self,
        method: str,
        call: Call,
        metadata: Metadata,
        authenticate: Authenticate,
        limit: CallLimit,
        audit: AuditLog | None,
        grpc_type: str,
        context: Context,
    ) -> None:
        _, service, name = method.split("/", 2)
        self._labels = (grpc_type, service, name)
        self._method = method
        self._context = context
        self._call = call
        self._metadata = metadata
        self._authenticate = authenticate
        self._limit = limit
        self._audit = audit
        self._request: Message | None = None
        self._response: Message | None = None
        self._certificate: bytes | None = None
        self._meter = Meter(limit.quotas, call)
        self._counted = False
        self._started = time.perf_counter()
        self._spanning = ExitStack()

    async def __aenter__(self) -> _Observation:
        enter_call(self._call)
        _, service, name = self._labels
        described = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = traces.call_span(
            f"{service}/{name}", self._call.id, self._call.traceparent, described
        )
        self._span = self._spanning.enter_context(span)
        self._context.set_trailing_metadata(statuses.told_at_the_end(self._call))
        metrics.STARTED.labels(*self._labels).inc()
        return self

    async def received(self, handler: Any) -> Message | None:
        """The request; None for a handler that cannot parse it, and does not want it read. Raises
        that it is not known who calls, or that there are too many calls, before it is read."""
        self._certificate = certificate_of(self._context)
        self._call.principal = await self._authenticate(self._metadata, self._certificate)
        self._call.check_known = self._check_known
        tenant = self._call.principal.account
        self._call.rules = self._limit.quotas.rules(tenant)
        CALLER.set(tenant or self._context.peer())
        self._limit.enter(tenant)
        self._counted = True
        if handler.request_deserializer is None:
            return None
        method = self._method[1:].replace("/", ".")
        kind = descriptor_pool.Default().FindMethodByName(method).input_type
        request = await receive(self._context, handler.request_deserializer, kind)
        metrics.RECEIVED.labels(*self._labels).inc()
        self._request = request
        return request

    async def _check_known(self) -> None:
        now = await self._authenticate(self._metadata, self._certificate)
        if now != self._call.principal:
            raise ActserveError(
                Reason.UNAUTHENTICATED,
                "what this call is known by is somebody else's by now, or has another role; call "
                "again",
            )

    @property
    def sending(self) -> AbstractContextManager[None]:
        """A block in which a message of a stream is written."""
        return self._call.spread(Stage.SEND).part()

    def sent(self, response: Message) -> None:
        self._response = response
        metrics.SENT.labels(*self._labels).inc()
        self._meter.read()

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
                self._meter.read()
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
        metrics.HANDLING_SECONDS.labels(*self._labels).observe(seconds, traces.exemplar())
        call = self._call
        metrics.call_ended(call)
        call.end_stages()
        number = code.value[0]
        self._span.ended(number, call.reason, {"rpc.grpc.status_code": number, **consumed(call)})
        # Whoever is not let in could fill the disk with lines.
        if self._audit is not None and self._counted:
            ending = Ending(method=self._method, peer=self._context.peer(), code=code.name)
            self._audit.write(call, ending, self._request, self._response)
        log.info(
            "call",
            method=self._method,
            code=code.name,
            reason=call.reason or None,
            duration_s=round(seconds, 4),
            request_id=call.id,
            trace_id=call.trace_id or self._span.trace_id,
            tenant=call.principal.tenant or None,
            peer=self._context.peer(),
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
            activation_bytes=call.activation_bytes,
        )


def consumed(call: Call) -> Attributes:
    """What the span of a call tells of it, beside how it ended."""
    return {
        "actserve.prompt_tokens": call.prompt_tokens,
        "actserve.output_tokens": call.output_tokens,
        "actserve.activation_bytes": call.activation_bytes,
    }


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
