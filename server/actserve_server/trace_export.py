"""Where spans go: to a collector of OpenTelemetry, by OTLP, where an option or the variables that
OpenTelemetry defines name one.

The SDK reads by itself how much is sampled (`OTEL_TRACES_SAMPLER`), what this server is called
(`OTEL_SERVICE_NAME`) and headers for the collector (`OTEL_EXPORTER_OTLP_HEADERS`).
"""

import os
import threading
from collections.abc import Callable
from typing import Any

from actserve_server.config import ConfigError, Settings
from actserve_server.version import VERSION

try:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError:  # The extra `otel` is not installed.
    trace = Resource = TracerProvider = BatchSpanProcessor = None

SERVICE_NAME = "actserve"
FLUSH_S = 5.0
"""What a collector gets to take the last spans of a server that ends."""

_PROTOCOLS = ("grpc", "http/protobuf")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(settings: Settings) -> bool:
    """Whether this server is to send spans. Raises ConfigError where it cannot."""
    if is_traced_already():
        return False
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if kind == "none":
        return False
    if kind not in ("", "otlp"):
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER is {kind!r}, but spans go by otlp or none; set one of them, or "
            "run the server under opentelemetry-instrument for others"
        )
    named = settings.otlp_endpoint or any(os.environ.get(name, "").strip() for name in _ENDPOINTS)
    if not (named or kind):
        return False
    _exporter_class()
    return True


def begin(settings: Settings) -> Callable[[], None]:
    """Has spans sent from now on, if they are to be. Returns what ends it, which waits up to
    `FLUSH_S` seconds for the last of them. Raises ConfigError."""
    if not wanted(settings):
        return lambda: None
    assert trace is not None
    assert Resource is not None
    assert TracerProvider is not None
    assert BatchSpanProcessor is not None
    own = {"service.version": VERSION}
    if settings.replica:
        own["service.instance.id"] = settings.replica
    resource = Resource.create(own)
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings.otlp_endpoint)))
    trace.set_tracer_provider(provider)

    def end() -> None:
        # In a thread, since it may wait for longer where the collector is gone.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_S)

    return end


def is_traced_already() -> bool:
    """Whether whoever runs the server has said where spans go, as `opentelemetry-instrument`
    does."""
    return (
        trace is not None
        and TracerProvider is not None
        and isinstance(trace.get_tracer_provider(), TracerProvider)
    )


def take_over() -> None:
    """Has calls that gRPC serves from now on have this server's spans alone. The instrumentation of
    gRPC by OpenTelemetry takes handlers for generators, which those of streams here are not, and
    puts messages of errors on spans, which may quote prompts."""
    try:
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer
    except ImportError:
        return
    found = GrpcAioInstrumentorServer()
    if found.is_instrumented_by_opentelemetry:
        found.uninstrument()


def _exporter(endpoint: str | None) -> Any:
    """Without an endpoint it finds one in the variables, or takes this machine's."""
    kind = _exporter_class()
    if endpoint is None:
        return kind()
    if _protocol() == "http/protobuf":
        return kind(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return kind(endpoint=endpoint)


def _exporter_class() -> Any:
    protocol = _protocol()
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        OTLPSpanExporter = None  # noqa: N806
    if OTLPSpanExporter is None or TracerProvider is None:
        raise ConfigError(
            "otlp_endpoint, or a variable of OpenTelemetry, asks for spans, but the packages that "
            "send them are not installed; install actserve-server[otel]"
        )
    return OTLPSpanExporter


def _protocol() -> str:
    found = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or _PROTOCOLS[0]
    ).strip()
    if found not in _PROTOCOLS:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {found!r}, but spans are sent by "
            f"{' or '.join(_PROTOCOLS)}; set one of them"
        )
    return found
