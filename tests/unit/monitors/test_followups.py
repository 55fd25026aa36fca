"""What follows an alert once it is stored."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from actserve_server.domain.runs import Run
from actserve_server.monitors.alert_explanations import AlertExplanations, RowToExplain
from actserve_server.monitors.followups import FollowUps, trace
from actserve_server.monitors.stored_alerts import NewAlert
from actserve_server.monitors.watched import Crossing, Level, LevelName, Stop, WatchedCall
from actserve_server.monitors.webhooks import Webhooks
from tests.unit.monitors.watchers import NETWORK, watcher

CALL = WatchedCall("vision", "fake", "c1", "user-7", "4bf92f3577b34da6a3ce929d0e0e4736")
MONITOR = "models/fake/monitors/followed"
SEQUENCE = Run(id="again", token_ids=(1, 2, 3))
SECRET = "xyzzy-secret"


@dataclass
class Recorder:
    """Webhooks and explanations that remember what is asked of them."""

    woken: int = 0
    offered: list[RowToExplain] = field(default_factory=list)

    def wake(self) -> None:
        self.woken += 1

    def offer(self, row: RowToExplain) -> bool:
        self.offered.append(row)
        return True


def crossing(**level: Any) -> Crossing:
    raised = Level(LevelName.UPPER, 1.0, Stop(), **level)
    return Crossing(watcher(MONITOR, raised), raised, 2.5, 2, 1, SECRET, SEQUENCE)


def follow(**level: Any) -> Recorder:
    recorder = Recorder()
    new = NewAlert(id="a1", call=CALL, crossing=crossing(**level), raised_at_us=1)
    FollowUps(
        webhooks=cast(Webhooks, recorder), explanations=cast(AlertExplanations, recorder)
    ).stored([new])
    return recorder


def test_it_is_counted() -> None:
    labels = {"monitor": MONITOR, "level": "upper", "action": "stop"}
    before = REGISTRY.get_sample_value("actserve_alerts_total", labels) or 0
    recorder = follow()
    assert REGISTRY.get_sample_value("actserve_alerts_total", labels) == before + 1
    assert (recorder.woken, recorder.offered) == (0, [])


def test_it_is_sent_where_the_level_has_a_webhook() -> None:
    assert follow(webhook="https://a.example/").woken == 1


def test_the_row_that_raised_it_is_explained_where_the_level_asks_for_it() -> None:
    (row,) = follow(explained_by="models/fake/nlas/tiny").offered
    assert (row.tenant, row.alert, row.nla) == ("vision", "a1", "models/fake/nlas/tiny")
    assert row.sites == NETWORK.sites
    assert row.sequence is SEQUENCE
    assert row.position == 2


def test_it_is_an_event_of_the_span_of_its_call_without_its_text() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("call"):
        trace("a1", crossing())
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "alert"
    assert dict(event.attributes or {}) == {
        "actserve.alert": "a1",
        "actserve.monitor": MONITOR,
        "actserve.level": "upper",
        "actserve.action": "stop",
        "actserve.score": pytest.approx(2.5),
        "actserve.position": 2,
        "actserve.sample_index": 1,
    }
    assert SECRET not in span.to_json()
    provider.shutdown()
