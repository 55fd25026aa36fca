"""Spans of OpenTelemetry: what whoever traces the server sees, and what nobody does."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.exposition import generate_latest

from actserve_server import traces
from actserve_server.engine.fake import FakeEngine
from actserve_server.stages import Spread, Stage
from tests.contract.fits import fit
from tests.contract.harness import collect, eventually, failure, fetch, generate, serving, site
from tests.contract.nlas import Tiny, explain_text, explanations
from tests.contract.spans import calls, span_id, times, trace_of, within
from tests.contract.sweeps import sweep
from tests.contract.test_attribution_graphs import create as create_graph

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
GENERATE = "actserve.v1.GenerationService/Generate"
SECRET = "xyzzy-secret"


async def test_a_call_is_a_span_of_the_trace_of_its_caller(exported: InMemorySpanExporter) -> None:
    async with serving() as served:
        request = generate(capture={"sites": [site()]})
        events = await collect(served.generation.Generate(request, metadata=METADATA))
        (span,) = await calls(exported)
    assert span.name == GENERATE
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert span.status.status_code is trace.StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "actserve.v1.GenerationService",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "actserve.call_id": events[0].started.call_id,
        "actserve.prompt_tokens": 6,
        "actserve.output_tokens": 5,
        "actserve.activation_bytes": 10 * 64,
    }


async def test_the_stages_of_a_call_are_spans_from_its_beginning_to_its_end(
    exported: InMemorySpanExporter,
) -> None:
    async with serving() as served:
        request = generate(capture={"sites": [site()]})
        await collect(served.generation.Generate(request, metadata=METADATA))
        (call,) = await calls(exported)
    stages = within(exported, call)
    assert stages.keys() == {"tokenize", "queue", "engine", "capture", "send"}
    parents = [each.parent for (each,) in stages.values() if each.parent]
    assert [f"{each.span_id:016x}" for each in parents] == [span_id(call)] * 5
    at = {name: times(each) for name, (each,) in stages.items()}
    began, ended = times(call)
    assert began <= at["tokenize"][0] <= at["tokenize"][1] <= at["queue"][0]
    assert at["queue"][1] <= at["engine"][0] <= at["capture"][0] <= at["capture"][1]
    # Sending begins before the run does, and is the last that is done.
    assert at["tokenize"][1] <= at["send"][0] <= at["engine"][1]
    assert at["capture"][1] <= at["send"][1] <= ended


async def test_a_call_without_a_trace_begins_one(exported: InMemorySpanExporter) -> None:
    async with serving() as served:
        await collect(served.generation.Generate(generate(), metadata=(("traceparent", "junk"),)))
        (span,) = await calls(exported)
    assert span.parent is None
    assert within(exported, span)["engine"]


async def test_calls_at_once_are_traces_of_their_own(exported: InMemorySpanExporter) -> None:
    async with serving(FakeEngine(token_delay_s=0.001), max_running=1) as served:
        asked = [collect(served.generation.Generate(generate())) for _ in range(3)]
        await asyncio.gather(*asked)
        told = await calls(exported, 3)
    assert len({trace_of(each) for each in told}) == 3
    assert [len(within(exported, each)["engine"]) for each in told] == [1, 1, 1]


async def test_a_refused_call_tells_its_reason_and_nothing_that_it_was_sent(
    exported: InMemorySpanExporter,
) -> None:
    async with serving() as served:
        await failure(served.generation.Generate(generate(model=SECRET)))
        await collect(served.generation.Generate(generate(prompt={"text": SECRET})))
        refused, _ = await calls(exported, 2)
    told = exported.get_finished_spans()
    assert (refused.attributes or {})["actserve.reason"] == "MODEL_NOT_FOUND"
    assert (refused.attributes or {})["rpc.grpc.status_code"] == 5
    # It is the caller's error, by the conventions of OpenTelemetry.
    assert refused.status.status_code is trace.StatusCode.UNSET
    assert not refused.events
    assert SECRET not in json.dumps([span.to_json() for span in told])


async def test_an_error_of_the_server_is_told_on_the_call_and_on_the_stage_without_its_words(
    exported: InMemorySpanExporter,
) -> None:
    engine = FakeEngine()
    async with serving(engine) as served:
        engine.faults.unexpected = f"cannot process {SECRET}"
        await failure(served.generation.Generate(generate()))
        (call,) = await calls(exported)
    (failed,) = within(exported, call)["engine"]
    assert (failed.attributes or {})["error.type"] == "RuntimeError"
    assert {call.status.status_code, failed.status.status_code} == {trace.StatusCode.ERROR}
    told = exported.get_finished_spans()
    assert SECRET not in json.dumps([span.to_json() for span in told])
    assert not any(span.events or span.status.description for span in told)


async def test_the_cells_of_a_sweep_are_spans_with_their_runs_below(
    exported: InMemorySpanExporter,
) -> None:
    async with serving() as served:
        await collect(served.sweeps.RunSweep(sweep()))
        (call,) = await calls(exported)
    stages = within(exported, call)
    cells = {span_id(each) for each in stages["cell"]}
    assert cells
    assert {f"{run.parent.span_id:016x}" for run in stages["engine"] if run.parent} == cells


async def test_an_explanation_is_a_span_beside_the_runs_that_it_takes(
    exported: InMemorySpanExporter,
) -> None:
    async with serving(None, Tiny().loaded()) as served:
        events = await collect(served.explanations.ExplainText(explain_text("hello")))
        (call,) = await calls(exported)
    stages = within(exported, call)
    assert len(stages["explain"]) == 1
    # Of the prompt, and of what explains its rows.
    assert len(stages["engine"]) == 1 + len(explanations(events))


async def test_work_in_the_background_is_of_the_trace_of_the_call_that_asked_for_it(
    exported: InMemorySpanExporter,
) -> None:
    def made() -> list[ReadableSpan]:
        spans = exported.get_finished_spans()
        return [each for each in spans if each.name in ("graph", "fit")]

    async with serving() as served:
        # The worker of each kind is begun by the first call, whose trace is not that of others.
        await served.graphs.CreateAttributionGraph(create_graph("first"))
        await served.monitors.FitMonitor(fit("first"))
        await served.graphs.CreateAttributionGraph(create_graph("second"), metadata=METADATA)
        await served.monitors.FitMonitor(fit("second"), metadata=METADATA)
        await eventually(lambda: len(made()) == 4, 30)
        told = await calls(exported, 4)
    traced = [(each.name, trace_of(each)) for each in made()]
    assert sorted(name for name, trace in traced if trace == TRACE) == ["fit", "graph"]
    assert {trace for _, trace in traced} == {trace_of(each) for each in told}


async def test_a_call_of_many_runs_has_so_many_spans_and_tells_of_the_others(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "MAX_SPANS", 5)
    async with serving() as served:
        await collect(served.generation.FetchActivations(fetch(*["hello"] * 20)))
        (call,) = await calls(exported)
    assert len(exported.get_finished_spans()) == 1 + 5
    left_out = (call.attributes or {})["actserve.spans_left_out"]
    assert isinstance(left_out, int)
    assert left_out > 20


async def test_a_stage_in_parts_is_told_once_with_the_sum_of_them(
    exported: InMemorySpanExporter,
) -> None:
    async def events() -> AsyncGenerator[int, None]:
        for each in range(3):
            yield each

    with traces.call_span("a.B/C", "id", None):
        spread = Spread(Stage.CAPTURE)
        assert [each async for each in spread.timed(events())] == [0, 1, 2]
        spread.end()
        spread.end()
        Spread(Stage.SEND).end()  # Of which there was nothing.
    part, call = exported.get_finished_spans()
    assert part.name == "capture"
    assert times(call)[0] <= times(part)[0] <= times(part)[1] <= times(call)[1]
    assert (part.attributes or {})["actserve.seconds"]


async def test_histograms_tell_the_trace_of_a_call_that_they_count(
    exported: InMemorySpanExporter,
) -> None:
    async with serving() as served:
        await collect(served.generation.Generate(generate(), metadata=METADATA))
        await calls(exported)
    told = generate_latest(REGISTRY).decode().splitlines()
    for name in ("actserve_stage_seconds_bucket", "grpc_server_handling_seconds_bucket"):
        assert any(
            each.startswith(name) and f'trace_id="{TRACE}"' in each.partition("#")[2]
            for each in told
        ), name


async def test_what_is_not_sampled_is_no_exemplar(exported: InMemorySpanExporter) -> None:
    with traces.call_span("a.B/C", "id", f"00-{TRACE}-{PARENT}-00"):
        assert traces.exemplar() is None
    assert not exported.get_finished_spans()


@pytest.mark.parametrize("traced", [False, True])
async def test_where_a_call_is_not_recorded_nothing_is_made_for_its_stages(
    monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    # Without an SDK, as a server runs that was not told to send spans.
    asked: list[str] = []
    found = trace.get_tracer
    monkeypatch.setattr(trace, "get_tracer", lambda name: (asked.append(name), found(name))[1])
    async with serving() as served:
        metadata = METADATA if traced else ()
        await collect(served.generation.Generate(generate(), metadata=metadata))
    assert asked == ["actserve"]


async def test_nothing_is_missed_where_opentelemetry_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("trace", "context", "TraceContextTextMapPropagator"):
        monkeypatch.setattr(traces, name, None)
    async with serving() as served:
        assert await collect(served.generation.Generate(generate(), metadata=METADATA))
    traces.add_event("alert", {"monitor": "models/fake/monitors/m"})
    assert traces.headers(f"00-{TRACE}-{PARENT}-01") == (("traceparent", METADATA[0][1]),)
