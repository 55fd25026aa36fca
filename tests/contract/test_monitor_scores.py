"""How the scores of a monitor are distributed, hour by hour, and how far that has drifted."""

import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors import drift
from actserve_server.monitors.stored_monitors import StoredMonitor
from tests.contract.alerts import watching
from tests.contract.harness import Served, collect, failure, generate, serving
from tests.contract.monitors import create, full, probe

HOUR = 3600


@pytest.fixture
async def served(store: dict[str, str]) -> AsyncIterator[Served]:
    """A server that stores in an empty database, with a monitor."""
    async with serving(FakeEngine(), **store) as running:
        await running.monitors.CreateMonitor(create(upper={"threshold": 1.0}))
        yield running


async def scores(served: Served, name: str = "harm") -> pb.GetMonitorScoresResponse:
    await served.watching.scores.flush()
    return await served.monitors.GetMonitorScores(pb.GetMonitorScoresRequest(name=full(name)))


async def stored(served: Served) -> StoredMonitor:
    return await served.watching.registry.get("", "harm")


def at(served: Served, hours_ago: float) -> None:
    """Lets the server count as if it were so long ago."""
    now = time.time() - hours_ago * HOUR
    served.watching.scores._clock = lambda: now  # pyright: ignore[reportPrivateUsage]


async def test_a_monitor_that_has_watched_nothing_has_no_hours(served: Served) -> None:
    answer = await scores(served)
    assert list(answer.hours) == []
    assert not answer.HasField("drift")
    assert 1.0 in answer.edges
    assert list(answer.edges) == sorted(answer.edges)


async def test_each_score_is_counted_in_its_hour_between_its_edges(served: Served) -> None:
    monitor = await stored(served)
    for hours_ago, score in ((3, 0.9), (3, 1.0), (0, 1.01)):
        at(served, hours_ago)
        served.watching.scores.count(monitor, score)
        answer = await scores(served)  # Written one by one.
    newest, oldest = answer.hours
    assert newest.start_time.seconds - oldest.start_time.seconds == 3 * HOUR
    assert newest.start_time.seconds % HOUR == 0
    assert newest.monitor_etag == monitor.etag
    assert len(newest.counts) == len(answer.edges) + 1
    edge = list(answer.edges).index(1.0)
    # One that equals the threshold is not above it.
    assert oldest.counts[edge] == 2
    assert newest.counts[edge + 1] == 1
    assert sum(newest.counts) + sum(oldest.counts) == 3


async def test_replicas_count_together(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), **store) as first, serving(FakeEngine(), **store) as second:
        await first.monitors.CreateMonitor(create())
        monitor = await stored(first)
        for each in (first, second):
            each.watching.scores.count(monitor, 0.0)
            await each.watching.scores.flush()
        (hour,) = (await scores(first)).hours
        assert sum(hour.counts) == 2


UNLIKE: dict[str, dict[str, Any]] = {
    "another probe": {"probes": [probe(2)]},
    "another aggregator": {"aggregator": {"ema": {"weight": 0.5}}},
    "other positions": {"positions": {"generated": {}}},
}
ALIKE: dict[str, dict[str, Any]] = {
    "another threshold": {"upper": {"threshold": 2.0}},
    "an action": {"upper": {"threshold": 1.0, "stop": {}}},
    "a pause": {"paused": True},
    "labels": {"labels": {"team": "safety"}},
    "other calls": {"watch": {"share": 0.5}},
    "the same probe": {"probes": [probe()]},
}


async def drifted(served: Served) -> StoredMonitor:
    """A monitor whose scores of the last day are others than those before, one sample short of
    telling."""
    monitor = await stored(served)
    rng = np.random.default_rng(0)
    for hours_ago, mean, samples in ((48, 0.0, 100), (0, 3.0, 99)):
        at(served, hours_ago)
        for score in rng.normal(mean, 1, samples):
            served.watching.scores.count(monitor, float(score))
        await served.watching.scores.flush()
    return monitor


async def update(served: Served, **changes: Any) -> None:
    request = pb.UpdateMonitorRequest(
        monitor={"name": full("harm"), **changes}, update_mask={"paths": [*changes]}
    )
    await served.monitors.UpdateMonitor(request)


async def test_drift_is_told_of_enough_samples(served: Served) -> None:
    monitor = await drifted(served)
    assert not (await scores(served)).HasField("drift")
    served.watching.scores.count(monitor, 3.0)
    assert (await scores(served)).drift > 0.2


@pytest.mark.parametrize("change", ALIKE)
async def test_drift_goes_on_through_changes_that_leave_scores_as_they_are(
    served: Served, change: str
) -> None:
    before = await drifted(served)
    await update(served, **ALIKE[change])
    monitor = await stored(served)
    assert monitor.etag != before.etag
    served.watching.scores.count(monitor, 3.0)
    answer = await scores(served)
    assert answer.drift > 0.2
    # Each hour says which version has scored.
    assert {each.monitor_etag for each in answer.hours} == {before.etag, monitor.etag}


@pytest.mark.parametrize("change", UNLIKE)
async def test_drift_begins_anew_where_scores_are_others(served: Served, change: str) -> None:
    served.watching.scores.count(await drifted(served), 3.0)
    assert (await scores(served)).HasField("drift")
    await update(served, **UNLIKE[change])
    assert not (await scores(served)).HasField("drift")


async def test_drift_goes_on_where_all_is_sent_again_as_it_was(served: Served) -> None:
    await drifted(served)
    await served.monitors.UpdateMonitor(
        pb.UpdateMonitorRequest(
            monitor={"name": full("harm"), "probes": [probe()], "upper": {"threshold": 1.0}}
        )
    )
    served.watching.scores.count(await stored(served), 3.0)
    assert (await scores(served)).drift > 0.2


async def test_another_probe_is_counted_anew(served: Served) -> None:
    served.watching.scores.count(await stored(served), 0.0)
    await served.watching.scores.flush()
    await served.monitors.UpdateMonitor(
        pb.UpdateMonitorRequest(
            monitor={
                "name": full("harm"),
                "probes": [probe(2)],
                "upper": {"threshold": 50.0},
            },
            update_mask={"paths": ["probes", "upper"]},
        )
    )
    answer = await scores(served)
    assert 50.0 in answer.edges
    assert list(answer.hours) == []


async def test_hours_go_with_their_monitor_and_with_time(served: Served) -> None:
    monitor = await stored(served)
    at(served, 0)
    served.watching.scores.count(monitor, 0.0)
    assert len((await scores(served)).hours) == 1
    at(served, -drift.KEEP_HOURS - 1)
    await served.watching.scores.expire()
    assert list((await scores(served)).hours) == []
    served.watching.scores.count(monitor, 0.0)
    await served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("harm")))
    await served.watching.scores.flush()  # Of a monitor that is not there any more.
    await served.monitors.CreateMonitor(create())
    assert list((await scores(served)).hours) == []


async def test_no_more_hours_are_stored_than_are_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_HOURS", 3)
    monitor = await stored(served)
    for hours_ago in range(6, -1, -1):
        at(served, hours_ago)
        served.watching.scores.count(monitor, 0.0)
        await served.watching.scores.flush()
    assert len((await scores(served)).hours) == 3


async def test_samples_that_were_watched_are_counted_and_alerts_of_them_told(
    served: Served,
) -> None:
    request = pb.UpdateMonitorRequest(
        monitor={"name": full("harm"), "upper": {"threshold": -1000.0, "stop": {}}},
        update_mask={"paths": ["upper"]},
    )
    version = (await served.monitors.UpdateMonitor(request)).monitor.etag
    async with watching(served) as reader:
        events = await collect(
            served.generation.Generate(generate(score_detail="SCORE_DETAIL_SAMPLE", end_user="ann"))
        )
        alert = await reader.next()
    (finished,) = [each.sample_finished for each in events if each.HasField("sample_finished")]
    assert finished.monitor == full("harm")
    (told,) = finished.monitor_scores
    assert (alert.monitor, alert.monitor_etag) == (full("harm"), version)
    assert (alert.score, alert.position) == (pytest.approx(told.score), 0)
    assert alert.end_user == "ann"
    (hour,) = (await scores(served)).hours
    assert sum(hour.counts) == 1


async def test_a_monitor_that_is_not_there_has_no_scores(served: Served) -> None:
    refused = await failure(
        served.monitors.GetMonitorScores(pb.GetMonitorScoresRequest(name=full("none")))
    )
    assert (refused.reason, refused.field) == ("RESOURCE_NOT_FOUND", "name")
