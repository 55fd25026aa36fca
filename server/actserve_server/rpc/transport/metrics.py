"""Every metric of the service, in prometheus_client's default registry, beside vLLM's own.

The `grpc_server_*` series have the names and labels of go-grpc-prometheus, so that dashboards made
for it work. No maintained library exports these for grpc.aio, so they are kept here by hand.
"""

from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tenant_rules import RulesOf, TenantRules
from actserve_server.rpc.transport import class_metrics

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

_TOKENS = Counter(
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
_REJECTIONS = Counter("actserve_rejections_total", "Calls ended by an error.", ("reason",))
HEAD_ITEMS = Counter("actserve_head_items_total", "Items of which heads were measured.")
SWEEP_CELLS = Counter(
    "actserve_sweep_cells_total",
    "Cells of sweeps that were sent: `run`, `stored` by an earlier call, or `failed`.",
    ("origin",),
)
RING_FILL = Histogram(
    "actserve_ring_fill_ratio",
    "How full the shared memory was, by which rows leave the engine, whenever it was emptied.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1),
)
AUDIT_FAILURES = Counter(
    "actserve_audit_failures_total", "Lines that could not be added to the audit log."
)
ENGINE_HEALTHY = Gauge("actserve_engine_healthy", "1 while every engine can run, else 0.")
ENGINE_RESTARTS = Counter(
    "actserve_engine_restarts_total", "Engines that died and serve again.", ("model",)
)

# At zero from the beginning, so that a rate over the first event is right.
for _kind in ("prompt", "output"):
    _TOKENS.labels(_kind)
for _reason in Reason:
    _REJECTIONS.labels(_reason.value)
for _origin in ("run", "stored", "failed"):
    SWEEP_CELLS.labels(_origin)

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


_DICTIONARIES = Gauge("actserve_dictionary_bytes", "Bytes of memory that dictionaries in use take.")
_WORK_WAITING = Gauge(
    "actserve_background_work_waiting",
    "Work that was asked for and waits for its turn on this server.",
    ("kind",),
)


class Consumed(Protocol):
    """What a call consumed."""

    @property
    def rules(self) -> TenantRules: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class Admission(class_metrics.Admission, Protocol):
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
    """What the gauges of kept activations and of dictionaries read."""

    @property
    def held_bytes(self) -> int: ...


class Waiting(Protocol):
    """What a gauge of work in the background reads."""

    @property
    def waiting(self) -> int: ...


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


def call_ended(call: Consumed) -> None:
    """Counts what a call consumed."""
    _TOKENS.labels("prompt").inc(call.prompt_tokens)
    _TOKENS.labels("output").inc(call.output_tokens)
    class_metrics.tokens_consumed(call.rules, call.prompt_tokens, call.output_tokens)


def refused(call: Consumed, error: ActserveError) -> None:
    """Counts an error that ended a call, or an item of it."""
    _REJECTIONS.labels(error.reason.value).inc()
    class_metrics.refused(call.rules, error)


def watch(
    admission: Admission,
    keeping: Keeping,
    storing: Storing,
    dictionaries: Keeping,
    rules: RulesOf,
) -> None:
    """Makes the gauges show these, at the moment they are read."""
    class_metrics.watch(admission, rules)
    _DICTIONARIES.set_function(lambda: dictionaries.held_bytes)
    _RUNS.set_function(lambda: admission.running)
    _WAITING.set_function(lambda: admission.waiting)
    _RESERVED.set_function(lambda: admission.reserved_bytes)
    _VECTORS.set_function(lambda: admission.vector_bytes)
    _WORKSPACE.set_function(lambda: admission.workspace_bytes)
    _REPORTS.set_function(lambda: admission.report_bytes)
    _KEPT.set_function(lambda: keeping.held_bytes)
    _STORE.set_function(lambda: storing.reachable)


def watch_work(**kinds: Waiting) -> None:
    """The same of work in the background, by its kind."""
    for kind, waiting in kinds.items():
        _WORK_WAITING.labels(kind).set_function(lambda waiting=waiting: waiting.waiting)


def prepare_method(grpc_type: str, service: str, method: str) -> None:
    """Makes the series of a method exist at zero, so that a rate over its first call is right."""
    for metric in (STARTED, RECEIVED, SENT, HANDLING_SECONDS):
        metric.labels(grpc_type, service, method)
    HANDLED.labels(grpc_type, service, method, "OK")
