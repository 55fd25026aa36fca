"""Servers of these tests look more often at what they look at now and then."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actserve_server import app


@pytest.fixture(autouse=True, scope="session")
def looking_often() -> Iterator[None]:
    """At the health of engines, at what has expired and at the file of tokens: once a second
    otherwise, for which every test of these would wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "POLL_S", 0.05)
        yield


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an exporter of OpenTelemetry gets."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # The global one can be set but once in a process.
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_, **__: provider.get_tracer(name))
    yield exporter
    provider.shutdown()
