"""Traces: the W3C trace context of the caller, where OpenTelemetry is installed."""

from typing import Any

_inject: Any
try:
    from opentelemetry.propagate import inject as _inject
except ImportError:  # It is no dependency.
    _inject = None


def trace_headers() -> tuple[tuple[str, str], ...]:
    """The headers by which a call becomes a part of the trace that is current."""
    if _inject is None:
        return ()
    headers: dict[str, str] = {}
    _inject(headers)
    return tuple(headers.items())
