"""Metrics and logs: what operators see, and what they must not."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2
from prometheus_client import REGISTRY

from actserve.v1 import model_service_pb2
from actserve_server import logs
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.transport.metrics import RowCacheWatch
from tests.contract.harness import (
    addition,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    intervention,
    serving,
    site,
)
from tests.contract.nlas import ROWS, Tiny, explain, explain_text, explanations, reconstruct

SECRET = "xyzzy-secret"
GENERATE = {
    "grpc_type": "server_stream",
    "grpc_service": "actserve.v1.GenerationService",
    "grpc_method": "Generate",
}


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_row_caches_are_told_together() -> None:
    """Those of a server's engines, and of one that is closed no more."""
    before = metric("actserve_row_cache_bytes") or 0.0
    hits = metric("actserve_row_cache_hits_total") or 0.0
    one, other = RowCacheWatch(), RowCacheWatch()
    for watch in (one, other):
        watch.held(1000)
        watch.found(3)
    other.held(-1000)
    assert metric("actserve_row_cache_bytes") == before + 1000
    assert metric("actserve_row_cache_hits_total") == hits + 6
    one.held(-1000)


@pytest.fixture
def log_lines() -> Iterator[Any]:
    """Reads the log lines so far, as dictionaries."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    logs.configure("info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    root.handlers, root.level = before


async def test_every_method_has_its_series_before_its_first_call() -> None:
    async with serving():
        for method in ("ListModels", "GetModel", "Tokenize"):
            labels = {
                "grpc_type": "unary",
                "grpc_service": "actserve.v1.ModelService",
                "grpc_method": method,
            }
            assert metric("grpc_server_started_total", **labels) is not None
            assert metric("grpc_server_handled_total", **labels, grpc_code="OK") is not None


async def test_explanations_are_counted_by_nla() -> None:
    def count(nla: str) -> float:
        return metric("actserve_explanations_total", nla=nla) or 0

    async with serving(None, Tiny().loaded(), Tiny(id="other").loaded()) as served:
        before = count("models/fake/nlas/tiny"), count("models/fake/nlas/other")
        request = explain(nla="models/fake/nlas/tiny", spec={"samples": 2, "partial": True})
        await collect(served.explanations.ExplainActivations(request))
        assert (count("models/fake/nlas/tiny"), count("models/fake/nlas/other")) == (
            before[0] + 2 * len(ROWS),
            before[1],
        )


async def test_a_call_is_counted_with_its_messages_and_time() -> None:
    names = [
        "grpc_server_started_total",
        "grpc_server_msg_received_total",
        "grpc_server_msg_sent_total",
        "grpc_server_handling_seconds_count",
    ]
    async with serving() as served:
        before = [metric(name, **GENERATE) or 0 for name in names]
        await collect(served.generation.Generate(generate()))
        after = [metric(name, **GENERATE) or 0 for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 8, 1]


async def test_tokens_of_calls_that_ended_are_counted() -> None:
    def counts() -> list[float]:
        return [metric("actserve_tokens_total", kind=kind) or 0 for kind in ("prompt", "output")]

    async with serving() as served:
        before = counts()
        await collect(served.generation.Generate(generate()))
        await eventually(lambda: counts() == [before[0] + 6, before[1] + 5])


@pytest.mark.parametrize(
    ("code", "request_", "timeout"),
    [
        ("OK", generate(), None),
        ("InvalidArgument", generate(sampling={"top_p": 7}), None),
        ("NotFound", generate(model="models/x"), None),
        ("DeadlineExceeded", generate(sampling={"max_tokens": 1500}), 0.1),
    ],
)
async def test_codes_are_counted_as_go_spells_them(
    code: str, request_: Any, timeout: float | None
) -> None:
    def count() -> float:
        return metric("grpc_server_handled_total", **GENERATE, grpc_code=code) or 0

    async with serving(FakeEngine(token_delay_s=0.005)) as served:
        before = count()
        call = served.generation.Generate(request_, timeout=timeout)
        await (collect(call) if code == "OK" else failure(call))
        await eventually(lambda: count() == before + 1)


async def test_rows_interventions_and_refusals_are_counted() -> None:
    def counts() -> list[float]:
        return [
            metric("actserve_captured_rows_total") or 0,
            metric("actserve_captured_bytes_total") or 0,
            metric("actserve_interventions_applied_total", operation="add") or 0,
            metric("actserve_rejections_total", reason="LAYER_OUT_OF_RANGE") or 0,
        ]

    async with serving() as served:
        before = counts()
        edits = [addition([0] * 16), addition([1] * 16)]
        await collect(served.generation.FetchActivations(fetch("ab", "c", interventions=edits)))
        await failure(served.generation.FetchActivations(fetch(capture={"sites": [site(9)]})))
        after = counts()
    assert [b - a for a, b in zip(before, after, strict=True)] == [5, 5 * 64, 4, 1]


async def test_interventions_are_counted_by_operation_once_a_run() -> None:
    kinds = ["add", "ablate", "zero"]

    def counts() -> list[float]:
        name = "actserve_interventions_applied_total"
        return [metric(name, operation=kind) or 0 for kind in kinds]

    edits = [
        addition([1] * 16),
        intervention(site(0), site(1), zero={}),
        intervention(zero={}, positions={"last": {}}),
    ]
    async with serving() as served:
        before = counts()
        request = generate(sampling={"max_tokens": 3, "samples": 2}, interventions=edits)
        await collect(served.generation.Generate(request))
        after = counts()
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 0, 4]


async def test_gauges_show_what_is_in_flight() -> None:
    async with serving(FakeEngine(token_delay_s=0.01), max_running=1) as served:
        request = generate(sampling={"max_tokens": 1000, "samples": 2}, capture={"sites": [site()]})
        call = served.generation.Generate(request)
        await call.read()
        await eventually(lambda: metric("actserve_runs_in_flight") == 1)
        assert metric("actserve_capture_reserved_bytes") == (6 + 999) * 64
        call.cancel()
        await eventually(lambda: metric("actserve_runs_in_flight") == 0)
        assert metric("actserve_capture_reserved_bytes") == 0
        assert metric("actserve_engine_healthy") == 1


async def test_a_call_is_one_log_line(log_lines: Any) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with serving() as served:
        call = served.generation.Generate(
            generate(capture={"sites": [site()]}),
            metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),),
        )
        events = await collect(call)
    (line,) = [line for line in log_lines() if line["event"] == "call"]
    assert line["method"] == "/actserve.v1.GenerationService/Generate"
    assert (line["code"], line["reason"]) == ("OK", None)
    assert (line["prompt_tokens"], line["output_tokens"]) == (6, 5)
    assert line["activation_bytes"] == 10 * 64
    assert line["request_id"] == events[0].started.call_id
    assert line["trace_id"] == trace
    assert line["peer"].startswith("ipv4:127.0.0.1")
    assert 0 <= line["duration_s"] < 10


async def test_a_refused_call_is_logged_with_its_reason(log_lines: Any) -> None:
    async with serving() as served:
        await failure(served.generation.Generate(generate(sampling={"top_p": 7})))
    (line,) = [line for line in log_lines() if line["event"] == "call"]
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "SAMPLING_INVALID")


async def test_ids_from_clients_are_not_taken_over(log_lines: Any) -> None:
    metadata = (("x-request-id", "chosen-by-client"), ("traceparent", "nonsense"))
    async with serving() as served:
        await collect(served.generation.Generate(generate(), metadata=metadata))
    (line,) = [line for line in log_lines() if line["event"] == "call"]
    assert line["request_id"] != "chosen-by-client"
    assert line["trace_id"] is None


async def test_no_log_line_holds_a_prompt_or_an_output(log_lines: Any) -> None:
    engine = FakeEngine()
    async with serving(engine) as served:
        events = await collect(served.generation.Generate(generate(prompt={"text": SECRET})))
        output = "".join(e.tokens.text for e in events)
        await collect(served.generation.FetchActivations(fetch(SECRET)))
        await failure(served.generation.Generate(generate(model=SECRET)))
        turns = [{"role": SECRET, "content": SECRET}]
        await failure(
            served.generation.Generate(generate(prompt={"conversation": {"turns": turns}}))
        )
        engine.faults.unexpected = f"cannot process {SECRET}"
        failed = await failure(served.generation.Generate(generate(prompt={"text": SECRET})))
    lines = log_lines()
    assert len(lines) >= 6
    assert SECRET not in json.dumps(lines)
    assert output not in json.dumps(lines)
    unexpected = next(line for line in lines if line["event"] == "unexpected error")
    assert unexpected["error"] == "builtins.RuntimeError"
    assert any("fake.py" in frame for frame in unexpected["frames"])
    assert unexpected["request_id"] in failed.message


async def test_no_log_line_holds_what_is_explained_or_reconstructed(log_lines: Any) -> None:
    tiny = Tiny()
    async with serving(None, tiny.loaded()) as served:
        stub = served.explanations
        events = await collect(stub.ExplainText(explain_text(SECRET)))
        await collect(stub.ReconstructActivations(reconstruct(SECRET)))
        await failure(stub.ExplainText(explain_text("hi", nla=SECRET)))
        assert tiny.ar is not None
        tiny.ar.faults.unexpected = f"cannot process {SECRET}"
        await failure(stub.ReconstructActivations(reconstruct(SECRET)))
    logged = json.dumps(log_lines())
    assert SECRET not in logged
    assert all(json.dumps(item.text) not in logged for item in explanations(events).values())


async def test_probes_are_not_logged(log_lines: Any) -> None:
    async with serving() as served:
        await served.health.Check(health_pb2.HealthCheckRequest())
    assert not [line for line in log_lines() if line["event"] == "call"]


@pytest.mark.parametrize("name", ["models/fake", "models/other"])
async def test_every_call_ends_with_its_id_and_the_version_of_the_server(name: str) -> None:
    async with serving() as served:
        call = served.models.GetModel(model_service_pb2.GetModelRequest(name=name))
        with contextlib.suppress(grpc.aio.AioRpcError):  # Of a model that is not served.
            await call
        trailers = dict(await call.trailing_metadata())
    assert trailers["x-actserve-version"] == version("actserve-server")
    assert trailers["x-request-id"]
