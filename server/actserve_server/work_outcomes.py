"""What Prometheus is told of work that goes on after the calls that asked for it: how it ended."""

from enum import StrEnum

from prometheus_client import Counter


class Work(StrEnum):
    """A kind of it."""

    GRAPH = "graph"
    FIT = "fit"


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    FAILED = "failed"
    UNWANTED = "unwanted"
    """What it was for was deleted meanwhile."""


_ENDED = Counter(
    "actserve_background_work_total",
    "Attribution graphs, and fits of monitors, that are over.",
    ("kind", "outcome"),
)
for _kind in Work:
    for _outcome in Outcome:
        _ENDED.labels(_kind, _outcome)  # At zero from the beginning.


def ended(kind: Work, outcome: Outcome) -> None:
    _ENDED.labels(kind, outcome).inc()
