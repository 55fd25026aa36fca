"""Spans of OpenTelemetry: what whoever traces the server sees, and what nobody does."""

import json
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actserve_server import traces
from tests.contract.harness import collect, eventually, failure, generate, serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
GENERATE = "actserve.v1.GenerationService/Generate"
SECRET = "xyzzy-secret"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an exporter of OpenTelemetry gets."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The global one can be set but once in a process.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


async def spans(exporter: InMemorySpanExporter, count: int = 1) -> list[ReadableSpan]:
    await eventually(lambda: len(exporter.get_finished_spans()) == count)
    return list(exporter.get_finished_spans())


async def test_a_call_is_a_span_of_the_trace_of_its_caller(exported: InMemorySpanExporter) -> None:
    async with serving() as served:
        events = await collect(served.generation.Generate(generate(), metadata=METADATA))
        (span,) = await spans(exported)
    assert span.name == GENERATE
    assert span.kind is trace.SpanKind.SERVER
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "actserve.v1.GenerationService",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "actserve.call_id": events[0].started.call_id,
    }


async def test_a_call_without_a_trace_begins_one(exported: InMemorySpanExporter) -> None:
    async with serving() as served:
        await collect(served.generation.Generate(generate(), metadata=(("traceparent", "junk"),)))
        (span,) = await spans(exported)
    assert span.parent is None


async def test_a_refused_call_tells_its_reason_and_nothing_that_it_was_sent(
    exported: InMemorySpanExporter,
) -> None:
    async with serving() as served:
        await failure(served.generation.Generate(generate(model=SECRET)))
        await collect(served.generation.Generate(generate(prompt={"text": SECRET})))
        refused, _ = told = await spans(exported, 2)
    assert (refused.attributes or {})["actserve.reason"] == "MODEL_NOT_FOUND"
    assert (refused.attributes or {})["rpc.grpc.status_code"] == 5
    assert not refused.events
    assert SECRET not in json.dumps([span.to_json() for span in told])


async def test_nothing_is_missed_where_opentelemetry_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("trace", "context", "TraceContextTextMapPropagator"):
        monkeypatch.setattr(traces, name, None)
    async with serving() as served:
        assert await collect(served.generation.Generate(generate(), metadata=METADATA))
    traces.add_event("alert", {"monitor": "models/fake/monitors/m"})
