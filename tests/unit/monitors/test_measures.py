"""What Prometheus is told of monitors."""

import secrets

import pytest
from prometheus_client import REGISTRY

from actserve_server.monitors import measures
from actserve_server.monitors.fair_series import FairSeries
from actserve_server.monitors.watched import Intervene, Level, LevelName, Pause, Stop
from tests.unit.monitors.watchers import score, watcher


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


@pytest.fixture
def name() -> str:
    """Of a monitor that no other test has."""
    return f"models/fake/monitors/{secrets.token_hex(8)}"


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_own", FairSeries(2, measures._end))


def test_tokens_and_time_are_counted_by_monitor(name: str) -> None:
    one, other = watcher(name), watcher(f"{name}-2")
    measures.tokens_scored([score(one, 0.5, tokens=7), score(other, 0.5, tokens=2)], 0.5, "")
    measures.tokens_scored([score(one, 0.5, tokens=1)], 0.25, "")
    assert metric("actserve_monitor_tokens_total", monitor=name) == 8
    assert metric("actserve_monitor_tokens_total", monitor=f"{name}-2") == 2
    assert metric("actserve_monitor_seconds_total", monitor=name) == 0.5
    assert metric("actserve_monitor_seconds_total", monitor=f"{name}-2") == 0.25


def test_the_highest_scores_of_samples_are_told(name: str) -> None:
    watching = watcher(name)
    for highest in (-0.7, 2.5, 1000.0):
        measures.sample_ended([score(watching, highest)], "")
    measures.sample_ended([score(watching, 0.0, tokens=0)], "")  # It has none.

    def up_to(bound: str) -> float | None:
        return metric("actserve_monitor_scores_bucket", monitor=name, le=bound)

    assert [up_to(bound) for bound in ("-1.0", "-0.5", "2.0", "3.0", "+Inf")] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("action", "word"),
    [
        (None, "none"),
        (Stop(), "stop"),
        (Intervene(()), "intervene"),
        (Pause(1.0, proceed_after=True), "pause"),
    ],
)
def test_alerts_are_counted_by_level_and_action(
    name: str, action: Stop | Intervene | Pause | None, word: str
) -> None:
    level = Level(LevelName.UPPER, 1.0, action)
    watching = watcher(name, Level(LevelName.LOWER, 0.0), level)
    labels = {"monitor": name, "level": "upper", "action": word}
    measures.sample_ended([score(watching, 0.0)], "")
    assert metric("actserve_alerts_total", **labels) == 0  # It is there before the first one.
    measures.alert_raised(watching, level, "")
    assert metric("actserve_alerts_total", **labels) == 1
    assert metric("actserve_alerts_total", monitor=name, level="lower", action="none") == 0


@pytest.mark.usefixtures("_few")
def test_only_so_many_monitors_have_series_of_their_own(name: str) -> None:
    before = metric("actserve_monitor_tokens_total", monitor="other") or 0
    for number in (0, 1, 2, 3, 0):
        measures.tokens_scored([score(watcher(f"{name}-{number}"), 0.0, tokens=1)], 0.0, "")
    own = [metric("actserve_monitor_tokens_total", monitor=f"{name}-{n}") for n in range(4)]
    assert own == [2, 1, None, None]
    assert metric("actserve_monitor_tokens_total", monitor="other") == before + 2


@pytest.mark.usefixtures("_few")
def test_the_series_of_a_monitor_that_loses_its_place_end(name: str) -> None:
    level = Level(LevelName.UPPER, 1.0, Stop())
    for number, tenant in enumerate(("ann", "ann", "bob")):
        watching = watcher(f"{name}-{number}", level)
        measures.tokens_scored([score(watching, 0.0, tokens=1)], 0.0, tenant)
        measures.sample_ended([score(watching, 0.0)], tenant)
        measures.alert_raised(watching, level, tenant)

    def series(number: int) -> list[float | None]:
        labels = {"monitor": f"{name}-{number}"}
        return [
            metric("actserve_monitor_tokens_total", **labels),
            metric("actserve_monitor_seconds_total", **labels),
            metric("actserve_monitor_scores_count", **labels),
            metric("actserve_alerts_total", **labels, level="upper", action="stop"),
        ]

    assert [series(number) for number in range(3)] == [[None] * 4, [1, 0, 1, 1], [1, 0, 1, 1]]


def test_outcomes_are_there_before_they_happen() -> None:
    for state in ("delivered", "dead"):
        assert metric("actserve_webhook_deliveries_total", state=state) is not None
    for outcome in ("done", "dropped", "failed"):
        assert metric("actserve_alert_explanations_total", outcome=outcome) is not None
