"""Monitors that are fitted to what a real model computes tell good moods from bad ones."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import monitor_service_pb2_grpc, work_pb2
from tests.integration.conftest import Served
from tests.integration.moods import BAD, GOOD

LAYERS = (8, 12, 16, 20)
LIMIT_S = 120


@pytest.fixture(scope="module")
def monitors(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield monitor_service_pb2_grpc.MonitorServiceStub(channel)


def fitted(monitors: Any, name: str, **fields: Any) -> pb.Monitor:
    """A monitor of the moods, once it is made. The two of a pair are held out together."""
    request = pb.FitMonitorRequest(
        monitor_id=name,
        request_id=name,
        examples=[
            {"prompt": {"text": text}, "positive": good, "group": f"pair {number}"}
            for good, texts in ((True, GOOD), (False, BAD))
            for number, text in enumerate(texts)
        ],
        sites=[{"hook_point": "HOOK_POINT_RESID_POST", "layer": layer} for layer in LAYERS],
        # The rows of the first tokens say little, and at the very first one are far off.
        positions={"span": {"start": 3}},
        **fields,
    )
    monitor = monitors.FitMonitor(request).monitor
    deadline = time.monotonic() + LIMIT_S
    while monitor.fit.work.state in (work_pb2.WORK_STATE_WAITING, work_pb2.WORK_STATE_RUNNING):
        assert time.monotonic() < deadline, monitor.fit.work
        time.sleep(0.05)
        monitor = monitors.GetMonitor(pb.GetMonitorRequest(name=monitor.name)).monitor
    assert monitor.fit.work.state == work_pb2.WORK_STATE_SUCCEEDED, monitor.fit.work.error.message
    told = monitor.fit
    print(
        f"{name}: {[(each.sites[0].layer, round(each.auroc, 2)) for each in told.tried]}, held out "
        f"{told.held_out.auroc:.3f} ({told.held_out.auroc_low:.2f} to "
        f"{told.held_out.auroc_high:.2f}), shuffled {told.shuffled.auroc:.3f}"
    )
    return monitor


def highest(monitors: Any, monitor: pb.Monitor, texts: tuple[str, ...]) -> list[float]:
    request = pb.ReplayMonitorsRequest(
        monitors=[monitor.name], items=[{"prompt": {"text": text}} for text in texts]
    )
    items = {
        event.item.item_index: event.item
        for event in monitors.ReplayMonitors(request)
        if event.HasField("item")
    }
    return [items[index].scores[0].highest_score for index in range(len(texts))]


@pytest.mark.parametrize("method", pb.FitMethod.keys()[1:])
def test_every_method_tells_moods_apart_that_it_has_not_seen(monitors: Any, method: Any) -> None:
    assert (len(GOOD), len(BAD)) == (32, 32)
    monitor = fitted(monitors, method.lower().replace("_", "-"), method=method)
    told = monitor.fit
    assert (told.held_out.positives, told.held_out.negatives) == (8, 8)
    assert told.held_out.auroc >= 0.9
    # The worker scores as the server did that fitted: to the rounding of 16 bits at most.
    scores = sorted(highest(monitors, monitor, (*GOOD, *BAD)))
    for score in (*told.held_out.positive_scores, *told.held_out.negative_scores):
        assert min(abs(each - score) for each in scores) < 1e-3 * max(1, abs(score))


@pytest.mark.parametrize("method", pb.FitMethod.keys()[1:])
def test_with_shuffled_labels_it_tells_nothing(monitors: Any, method: Any) -> None:
    # The request is equal, and so the monitor is the same.
    monitor = fitted(monitors, method.lower().replace("_", "-"), method=method)
    assert monitor.fit.shuffled.auroc == pytest.approx(0.5, abs=0.1)
