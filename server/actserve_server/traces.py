"""Spans of OpenTelemetry: one for each call, within it one for each stage (`stages.py`), and on it
an event for each alert.

Where they go `trace_export.py` says, or whoever runs the server under `opentelemetry-instrument`.
Without either, or without `opentelemetry-api`, nothing of this does anything. Nothing of a prompt
or an output is ever put here, nor are messages of errors, which may quote both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from actserve_server.domain.errors import ActserveError

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # The extra `otel` is not installed.
    context = trace = TraceContextTextMapPropagator = None

Attributes = Mapping[str, str | int | float]

MAX_SPANS = 200
"""Within one call, which may have thousands of runs. Its own span tells how many were left out."""

_NAME = "actserve"
_FAULTS = frozenset({2, 4, 12, 13, 14, 15})
"""The codes of gRPC for which the conventions of OpenTelemetry call a server's span an error; what
is left is the caller's: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
DATA_LOSS."""


class _Room:
    """For the spans within a call, and whatever it has begun that goes on after it."""

    def __init__(self) -> None:
        self._made = 0

    def take(self) -> bool:
        self._made += 1
        return self._made <= MAX_SPANS

    @property
    def left_out(self) -> int:
        return max(0, self._made - MAX_SPANS)


_room: ContextVar[_Room | None] = ContextVar("actserve_spans", default=None)


class CallSpan:
    """The span of a call, which is still open."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """Of the caller's trace, or of the one that the call began."""
        return None if self._span is None else _trace_id(self._span)

    def ended(self, code: int, reason: str, attributes: Attributes | None = None) -> None:
        """Tells what the call ended with: the status of gRPC, by its number, which says whose
        error it was, and the `Reason` of an error."""
        if self._span is None or trace is None:
            return
        self._span.set_attributes(dict(attributes or {}))
        if reason:
            self._span.set_attribute("actserve.reason", reason)
        if code in _FAULTS:
            self._span.set_status(trace.StatusCode.ERROR)
        if (room := _room.get()) is not None and room.left_out:
            self._span.set_attribute("actserve.spans_left_out", room.left_out)


@contextmanager
def call_span(
    name: str, call_id: str, traceparent: str | None, attributes: Attributes | None = None
) -> Iterator[CallSpan]:
    """Has the block be a span, of the trace that the caller's header names."""
    _room.set(_Room())
    if trace is None or context is None or TraceContextTextMapPropagator is None:
        yield CallSpan()
        return
    parent = context.Context()
    if traceparent:
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, parent)
    span = trace.get_tracer(_NAME).start_span(
        name,
        parent,
        trace.SpanKind.SERVER,
        {**(attributes or {}), "actserve.call_id": call_id},
    )
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        yield CallSpan(span)


@contextmanager
def span(name: str, attributes: Attributes | None = None) -> Iterator[None]:
    """Has the block be a span within the one that is current, in a call or what it has begun. An
    error that ends it is told by its reason alone."""
    if trace is None or not _is_wanted():
        yield
        return
    made = trace.get_tracer(_NAME).start_span(name, attributes=dict(attributes or {}))
    with trace.use_span(
        made, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except Exception as error:
            made.set_status(trace.StatusCode.ERROR)
            made.set_attribute("error.type", _kind(error))
            raise


def add_span(
    name: str, started_ns: int, ended_ns: int, attributes: Attributes | None = None
) -> None:
    """Adds a span of the past, between these times of `time.time_ns`."""
    if trace is None or not _is_wanted():
        return
    made = trace.get_tracer(_NAME).start_span(
        name, attributes=dict(attributes or {}), start_time=started_ns
    )
    made.end(ended_ns)


def add_event(name: str, attributes: Attributes) -> None:
    """Puts an event on the span of the call that is being served, if there is one."""
    if trace is not None:
        trace.get_current_span().add_event(name, dict(attributes))


def trace_id() -> str | None:
    """Of the trace that is current, as 32 hexadecimal digits."""
    return None if trace is None else _trace_id(trace.get_current_span())


def exemplar() -> dict[str, str] | None:
    """What a metric tells of the call that it counts: its trace, if that is recorded."""
    if trace is None:
        return None
    found = trace.get_current_span().get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


def headers(traceparent: str | None) -> tuple[tuple[str, str], ...]:
    """By which a call to another server is of the trace that is current; else of the one of
    `traceparent`."""
    found: dict[str, str] = {}
    if TraceContextTextMapPropagator is not None:
        TraceContextTextMapPropagator().inject(found)
    if not found and traceparent:
        found["traceparent"] = traceparent
    return tuple(found.items())


def _is_wanted() -> bool:
    """Whether there is room for one more within a call that is recorded, which need not go on."""
    room = _room.get()
    if trace is None or room is None:
        return False
    return not isinstance(trace.get_current_span(), trace.NonRecordingSpan) and room.take()


def _trace_id(span: Any) -> str | None:
    found = span.get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else None


def _kind(error: Exception) -> str:
    return error.reason.value if isinstance(error, ActserveError) else type(error).__qualname__
