"""Spans of OpenTelemetry as the fixture `exported` has them."""

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.contract.harness import eventually


async def calls(exporter: InMemorySpanExporter, count: int = 1) -> list[ReadableSpan]:
    """The spans of calls, once so many have ended."""

    def ended() -> list[ReadableSpan]:
        found = exporter.get_finished_spans()
        return [each for each in found if each.kind is trace.SpanKind.SERVER]

    await eventually(lambda: len(ended()) == count)
    return ended()


def within(exporter: InMemorySpanExporter, call: ReadableSpan) -> dict[str, list[ReadableSpan]]:
    """The spans below a call by their names."""
    below: dict[str, list[ReadableSpan]] = {}
    parents = {span_id(call)}
    for each in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0):
        if each.parent is not None and f"{each.parent.span_id:016x}" in parents:
            assert trace_of(each) == trace_of(call)
            parents.add(span_id(each))
            below.setdefault(each.name, []).append(each)
    return below


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time
