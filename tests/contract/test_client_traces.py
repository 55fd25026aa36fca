"""Traces from a program that calls to the server: one trace, whose parts are in each other."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, GrpcInstrumentorClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import actserve
from actserve_server import trace_export
from tests.contract.harness import Served, collect, generate, serving
from tests.contract.spans import calls, span_id, trace_of, within


def of(exporter: InMemorySpanExporter, kind: trace.SpanKind) -> list[ReadableSpan]:
    return [each for each in exporter.get_finished_spans() if each.kind is kind]


async def ask(served: Served, blocking: bool, **options: Any) -> Any:
    """A generation by a client; an error is returned."""
    target = f"127.0.0.1:{served.app.port}"

    def block() -> Any:
        with actserve.Client(target, traces=True) as client:
            return client.generate("hello", **options)

    try:
        if blocking:
            return await asyncio.to_thread(block)
        async with actserve.AsyncClient(target, traces=True) as client:
            return await client.generate("hello", **options)
    except actserve.ActserveError as error:
        return error


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_call_is_one_trace_from_the_program_to_the_engine(
    exported: InMemorySpanExporter, blocking: bool
) -> None:
    async with serving() as served:
        with trace.get_tracer("test").start_as_current_span("program"):
            await ask(served, blocking, max_tokens=2)
        await calls(exported)
    (program,) = [each for each in exported.get_finished_spans() if each.name == "program"]
    (sent,) = within(exported, program)["actserve.v1.GenerationService/Generate"][:1]
    (served_call,) = of(exported, trace.SpanKind.SERVER)
    assert served_call.parent is not None
    assert f"{served_call.parent.span_id:016x}" == span_id(sent)
    assert {trace_of(each) for each in exported.get_finished_spans()} == {trace_of(program)}
    assert within(exported, served_call)["engine"]
    assert (sent.attributes or {})["rpc.grpc.status_code"] == 0


@pytest.mark.parametrize("blocking", [False, True])
async def test_an_error_is_told_by_its_reason_alone(
    exported: InMemorySpanExporter, blocking: bool
) -> None:
    async with serving() as served:
        error = await ask(served, blocking, top_p=7)
        assert isinstance(error, actserve.ActserveError)
        (sent,) = of(exported, trace.SpanKind.CLIENT)
    assert sent.status.status_code is trace.StatusCode.ERROR
    assert sent.status.description is None
    assert not sent.events
    assert (sent.attributes or {})["error.type"] == "SAMPLING_INVALID"
    assert (sent.attributes or {})["rpc.grpc.status_code"] == 3


async def test_a_client_makes_no_spans_unless_it_is_told_to(exported: InMemorySpanExporter) -> None:
    async with serving() as served:
        with trace.get_tracer("test").start_as_current_span("program") as program:
            async with actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client:
                await client.generate("hello", max_tokens=2)
        await calls(exported)
    assert not of(exported, trace.SpanKind.CLIENT)
    (call,) = of(exported, trace.SpanKind.SERVER)
    # The trace is passed on all the same.
    assert call.parent is not None
    assert call.parent.span_id == program.get_span_context().span_id


@pytest.fixture
def instrumented() -> Iterator[None]:
    """A program that OpenTelemetry instruments by itself."""
    both = GrpcInstrumentorClient(), GrpcAioInstrumentorServer()
    for each in both:
        each.instrument()
    yield
    for each in both:
        if each.is_instrumented_by_opentelemetry:
            each.uninstrument()


@pytest.mark.usefixtures("instrumented")
async def test_streams_are_whole_where_opentelemetry_instruments_grpc(
    exported: InMemorySpanExporter,
) -> None:
    trace_export.take_over()
    async with serving() as served:
        answer = await ask(served, blocking=True, max_tokens=2)
        assert isinstance(answer, actserve.Generation), answer
        await collect(served.generation.Generate(generate()))
        await calls(exported, 2)
    # No span of a call is there twice.
    assert len(of(exported, trace.SpanKind.CLIENT)) == 1
