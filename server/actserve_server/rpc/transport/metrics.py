"""Every metric of the service, in prometheus_client's default registry, beside vLLM's own.

The `grpc_server_*` series have the names and labels of go-grpc-prometheus, so that dashboards made
for it work. No maintained library exports these for grpc.aio, so they are kept here by hand.
"""

from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from actserve_server.domain.errors import Reason

_METHOD = ("grpc_type", "grpc_service", "grpc_method")

STARTED = Counter("grpc_server_started_total", "Calls started.", _METHOD)
HANDLED = Counter("grpc_server_handled_total", "Calls ended, by code.", (*_METHOD, "grpc_code"))
RECEIVED = Counter("grpc_server_msg_received_total", "Messages received.", _METHOD)
SENT = Counter("grpc_server_msg_sent_total", "Messages sent.", _METHOD)
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from the start to the end of a call.",
    _METHOD,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

HTTP_REQUESTS = Counter(
    "actserve_http_requests_total",
    "Requests of the OpenAI API that ended, by status; 499 if the client went before any.",
    ("path", "status"),
)
HTTP_SECONDS = Histogram(
    "actserve_http_request_seconds",
    "Seconds from the start to the end of a request of the OpenAI API.",
    ("path",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

TOKENS = Counter(
    "actserve_tokens_total",
    "Tokens of calls that ended, of all models: read in prompts, and written.",
    ("kind",),
)
CAPTURED_ROWS = Counter("actserve_captured_rows_total", "Activation rows sent.")
CAPTURED_BYTES = Counter("actserve_captured_bytes_total", "Activation payload bytes sent.")
INTERVENTIONS = Counter(
    "actserve_interventions_applied_total",
    "Interventions of runs that finished, once a run.",
    ("operation",),
)
EXPLANATIONS = Counter("actserve_explanations_total", "Explanations sent.", ("nla",))
REJECTIONS = Counter("actserve_rejections_total", "Calls ended by an error.", ("reason",))
AUDIT_FAILURES = Counter(
    "actserve_audit_failures_total", "Lines that could not be added to the audit log."
)
ENGINE_HEALTHY = Gauge("actserve_engine_healthy", "1 while every engine can run, else 0.")
ENGINE_RESTARTS = Counter(
    "actserve_engine_restarts_total", "Engines that died and serve again.", ("model",)
)

# At zero from the beginning, so that a rate over the first event is right.
for _kind in ("prompt", "output"):
    TOKENS.labels(_kind)
for _reason in Reason:
    REJECTIONS.labels(_reason.value)

_RUNS = Gauge("actserve_runs_in_flight", "Sequences being run.")
_WAITING = Gauge("actserve_runs_waiting", "Sequences waiting to be admitted.")
_RESERVED = Gauge(
    "actserve_capture_reserved_bytes", "Bytes reserved for the rows of sequences being run."
)
_VECTORS = Gauge(
    "actserve_vector_bytes",
    "Bytes of the vectors that sequences being run are changed by, equal ones once.",
)
_WORKSPACE = Gauge(
    "actserve_workspace_bytes",
    "The most that a step of the sequences being run takes of the model's device for their rows.",
)
_REPORTS = Gauge(
    "actserve_report_reserved_bytes",
    "Bytes reserved for tokens, log probabilities and reports of sequences being run.",
)
_KEPT = Gauge("actserve_kept_bytes", "Bytes of activations kept for later calls.")
_STORE = Gauge("actserve_store_reachable", "0 since the database could not be reached, else 1.")
_ROW_CACHE = Gauge(
    "actserve_row_cache_bytes", "Bytes of rows that are cached for captures of the same prompts."
)
_ROW_CACHE_HITS = Counter(
    "actserve_row_cache_hits_total", "Rows that were cached when a capture asked for them."
)


class Admission(Protocol):
    """What the in-flight gauges read."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...
    @property
    def vector_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def report_bytes(self) -> int: ...


class Keeping(Protocol):
    """What the gauge of kept activations reads."""

    @property
    def held_bytes(self) -> int: ...


class Storing(Protocol):
    """What the gauge of the database reads."""

    @property
    def reachable(self) -> bool: ...


class RowCacheWatch:
    """What row caches report to."""

    def held(self, more: int) -> None:
        _ROW_CACHE.inc(more)

    def found(self, rows: int) -> None:
        _ROW_CACHE_HITS.inc(rows)


def watch(admission: Admission, keeping: Keeping, storing: Storing) -> None:
    """Makes the gauges show these, at the moment they are read."""
    _RUNS.set_function(lambda: admission.running)
    _WAITING.set_function(lambda: admission.waiting)
    _RESERVED.set_function(lambda: admission.reserved_bytes)
    _VECTORS.set_function(lambda: admission.vector_bytes)
    _WORKSPACE.set_function(lambda: admission.workspace_bytes)
    _REPORTS.set_function(lambda: admission.report_bytes)
    _KEPT.set_function(lambda: keeping.held_bytes)
    _STORE.set_function(lambda: storing.reachable)


def prepare_method(grpc_type: str, service: str, method: str) -> None:
    """Makes the series of a method exist at zero, so that a rate over its first call is right."""
    for metric in (STARTED, RECEIVED, SENT, HANDLING_SECONDS):
        metric.labels(grpc_type, service, method)
    HANDLED.labels(grpc_type, service, method, "OK")
