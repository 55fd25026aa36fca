"""Spans of OpenTelemetry: one for each call, and on it an event for each alert.

Where they go is decided around the server (`opentelemetry-instrument actserve-server serve`, and
the variables that OpenTelemetry defines). Without that, or without `opentelemetry-api`, nothing of
this does anything. Nothing of a prompt or an output is ever put here, nor are messages of errors.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # The extra `otel` is not installed.
    context = trace = TraceContextTextMapPropagator = None

_NAME = "actserve"


class CallSpan:
    """The span of a call, which is still open."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def ended(self, code: int, reason: str) -> None:
        """Tells the status of gRPC that the call ends with, and the `Reason` of an error."""
        if self._span is None:
            return
        self._span.set_attribute("rpc.grpc.status_code", code)
        if reason:
            self._span.set_attribute("actserve.reason", reason)


@contextmanager
def call_span(method: str, call_id: str, traceparent: str | None) -> Iterator[CallSpan]:
    """Has the block be a span, of the trace that the caller's header names. `method` is written
    `/package.Service/Method`."""
    if trace is None or context is None or TraceContextTextMapPropagator is None:
        yield CallSpan()
        return
    parent = context.get_current()
    # A span that is there already was made of the header by whoever instruments gRPC.
    if traceparent and not trace.get_current_span().get_span_context().is_valid:
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    service, _, name = method.removeprefix("/").partition("/")
    span = trace.get_tracer(_NAME).start_span(
        f"{service}/{name}",
        parent,
        trace.SpanKind.SERVER,
        {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "actserve.call_id": call_id,
        },
    )
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        yield CallSpan(span)


def add_event(name: str, attributes: Mapping[str, str | int | float]) -> None:
    """Puts an event on the span of the call that is being served, if there is one."""
    if trace is not None:
        trace.get_current_span().add_event(name, dict(attributes))
