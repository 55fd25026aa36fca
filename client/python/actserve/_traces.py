"""Traces: the W3C trace context of the caller, where OpenTelemetry is installed, and a span for
each attempt at a call, where a client is told to make them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from actserve.errors import ActserveError

_trace: Any
_inject: Any
try:
    from opentelemetry import trace as _trace
    from opentelemetry.propagate import inject as _inject
except ImportError:  # It is no dependency.
    _trace = _inject = None
_suppressed: Callable[[], AbstractContextManager[None]]
try:
    from opentelemetry.instrumentation.utils import suppress_instrumentation as _suppressed
except ImportError:
    _suppressed = nullcontext

Headers = tuple[tuple[str, str], ...]


def untouched() -> AbstractContextManager[None]:
    """A block in which OpenTelemetry's instrumentation of gRPC leaves a call that is made as it is:
    it would have a blocking stream be one that cannot be cancelled and has no metadata."""
    return _suppressed()


@contextmanager
def attempt(method: str, *, makes_span: bool) -> Iterator[Headers]:
    """The headers by which an attempt at a call becomes a part of the trace that is current. With
    `makes_span` it is a span of that trace while the block runs, which nothing of what is sent or
    answered is on. `method` is written `package.Service/Method`."""
    if _trace is None or not makes_span:
        yield _headers(None)
        return
    service, _, name = method.partition("/")
    # Not made the current one: a generator may end in another context than it began in.
    span = _trace.get_tracer("actserve").start_span(
        method,
        kind=_trace.SpanKind.CLIENT,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )
    try:
        yield _headers(_trace.set_span_in_context(span))
        span.set_attribute("rpc.grpc.status_code", 0)
    except ActserveError as error:
        span.set_attribute("rpc.grpc.status_code", error.code.value[0])
        span.set_attribute("error.type", error.reason or error.code.name)
        span.set_status(_trace.StatusCode.ERROR)
        raise
    finally:
        span.end()


def _headers(context: Any) -> Headers:
    if _inject is None:
        return ()
    headers: dict[str, str] = {}
    _inject(headers, context)
    return tuple(headers.items())
