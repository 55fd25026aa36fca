"""Where spans go: nowhere unless an option or a variable of OpenTelemetry says so."""

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from actserve_server import trace_export
from actserve_server.config import ConfigError, Settings

ADDRESS = "http://127.0.0.1:4317"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def settings(**options: Any) -> Settings:
    return Settings(model="fake", port=0, metrics_port=0, **options)


@pytest.mark.parametrize(
    ("variables", "option", "wanted"),
    [
        ({}, None, False),
        ({}, ADDRESS, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ADDRESS}, None, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ADDRESS}, None, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, None, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, ADDRESS, False),
        ({"OTEL_SDK_DISABLED": "true"}, ADDRESS, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ADDRESS, True),
        # Of the service, not of where spans go.
        ({"OTEL_SERVICE_NAME": "actserve"}, None, False),
    ],
)
def test_spans_are_sent_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], option: str | None, wanted: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert trace_export.wanted(settings(otlp_endpoint=option)) is wanted


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        trace_export.wanted(settings(otlp_endpoint=ADDRESS))


def test_whoever_traces_the_process_says_where_spans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setattr(trace_export.trace, "get_tracer_provider", TracerProvider)
    assert not trace_export.wanted(settings(otlp_endpoint=ADDRESS))


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_export, "TracerProvider", None)
    assert not trace_export.wanted(settings())
    with pytest.raises(ConfigError, match=r"install actserve-server\[otel\]"):
        trace_export.wanted(settings(otlp_endpoint=ADDRESS))


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.sent: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sent.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


# In a process of its own, since a process has one provider for ever.
_SEND = """
import sys
from actserve_server import trace_export, traces
from actserve_server.config import Settings
end = trace_export.begin(Settings(model="fake", otlp_endpoint=sys.argv[1], replica="east-1"))
with traces.call_span("actserve.v1.A/B", "id", None):
    with traces.span("engine"):
        pass
end()
"""


def test_a_collector_gets_spans_with_the_name_of_the_server_before_it_ends(tmp_path: Path) -> None:
    collector = _Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        subprocess.run(
            [sys.executable, "-c", _SEND, f"http://127.0.0.1:{port}"], check=True, cwd=tmp_path
        )
    finally:
        server.stop(0)
    (told,) = [each for request in collector.sent for each in request.resource_spans]
    resource = {each.key: each.value.string_value for each in told.resource.attributes}
    assert (resource["service.name"], resource["service.instance.id"]) == ("actserve", "east-1")
    spans = [span.name for scope in told.scope_spans for span in scope.spans]
    assert sorted(spans) == ["actserve.v1.A/B", "engine"]
