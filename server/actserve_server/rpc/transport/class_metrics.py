"""What Prometheus is told of tenants: by their class, since tenants come and go and whoever reads
metrics need not know them. The operator names the classes (`class` in the tenant file).
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tenant_rules import DEFAULT_CLASS, RulesOf, TenantRules, no_rules

MAX_CLASSES = 64
"""That have series of their own, of all that tenant files have named since the start."""
OTHER = "other"
"""What all further ones are counted under."""

_QUOTAS = {
    Reason.QUOTA_EXCEEDED: "concurrent_calls",
    Reason.STORE_QUOTA_EXCEEDED: "stored",
    Reason.KEPT_QUOTA_EXCEEDED: "kept_bytes",
}
"""What a quota is called where its error does not say."""
_BY_THE_MINUTE = ("requests_a_minute", "tokens_a_minute", "captured_bytes_a_minute")

_TOKENS = Counter(
    "actserve_class_tokens_total",
    "Tokens of calls that ended, by the class of their tenant.",
    ("tenant_class", "kind"),
)
_REFUSALS = Counter(
    "actserve_quota_refusals_total",
    "Calls and items refused for the quota of their tenant.",
    ("tenant_class", "quota"),
)


class Load(Protocol):
    """What one account has of the engine."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...


class Admission(Protocol):
    """Who has what of the engine."""

    def loads(self) -> Mapping[str, Load]:
        """By account; empty for callers without one. Any thread may ask."""
        ...


class _Classes:
    """The classes that have series of their own."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.label(DEFAULT_CLASS)

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(self._seen)

    def label(self, name: str) -> str:
        """What a class is counted under."""
        if name not in self._seen:
            if len(self._seen) >= MAX_CLASSES:
                return OTHER
            self._seen.add(name)
            # At zero from the beginning, so that a rate over the first event is right.
            for kind in ("prompt", "output"):
                _TOKENS.labels(name, kind)
            for quota in (*_BY_THE_MINUTE, *_QUOTAS.values()):
                _REFUSALS.labels(name, quota)
        return name


_classes = _Classes()


def tokens_consumed(rules: TenantRules, prompt: int, output: int) -> None:
    """A call of a tenant with these rules ended."""
    label = _classes.label(rules.tenant_class)
    _TOKENS.labels(label, "prompt").inc(prompt)
    _TOKENS.labels(label, "output").inc(output)


def refused(rules: TenantRules, error: ActserveError) -> None:
    """Counts the refusal of a call or an item of a tenant with these rules, if a quota was the
    reason."""
    if (quota := _QUOTAS.get(error.reason)) is None:
        return
    told = str(error.metadata.get("quota", ""))
    named = told if told in _BY_THE_MINUTE else quota
    _REFUSALS.labels(_classes.label(rules.tenant_class), named).inc()


class _Loads(Collector):
    """Gauges by class, as they are when they are read."""

    def __init__(self) -> None:
        self._admission: Admission | None = None
        self._rules: RulesOf = no_rules

    def watch(self, admission: Admission, rules: RulesOf) -> None:
        self._admission, self._rules = admission, rules

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gauges = {
            "running": GaugeMetricFamily(
                "actserve_class_runs_in_flight",
                "Sequences being run, by the class of their tenant.",
                labels=("tenant_class",),
            ),
            "waiting": GaugeMetricFamily(
                "actserve_class_runs_waiting",
                "Sequences waiting to be admitted, by the class of their tenant.",
                labels=("tenant_class",),
            ),
            "reserved_bytes": GaugeMetricFamily(
                "actserve_class_capture_reserved_bytes",
                "Bytes reserved for rows, by the class of their tenant.",
                labels=("tenant_class",),
            ),
        }
        loads = self._admission.loads() if self._admission is not None else {}
        by_class: dict[str, list[Load]] = {}
        for account, load in loads.items():
            label = _classes.label(self._rules(account).tenant_class)
            by_class.setdefault(label, []).append(load)
        for label in sorted(_classes.labels | by_class.keys()):
            for name, gauge in gauges.items():
                total = sum(getattr(load, name) for load in by_class.get(label, ()))
                gauge.add_metric((label,), total)
        yield from gauges.values()


_loads = _Loads()
REGISTRY.register(_loads)


def watch(admission: Admission, rules: RulesOf) -> None:
    """Makes the gauges by class show this."""
    _loads.watch(admission, rules)
