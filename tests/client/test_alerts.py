"""Alerts: watched without a gap, looked up, decided about and deleted."""

import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import grpc
import pytest

from actserve import (
    Alert,
    BadResponse,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotServed,
    Unavailable,
)
from actserve.v1 import alert_pb2
from actserve.v1 import monitor_service_pb2 as pb

from .fake_monitors import alert, whole
from .fake_server import Model, serving


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


def watched(client: Any, count: int, **options: Any) -> list[Alert]:
    alerts = client.alerts.watch(**options)
    try:
        return [*islice(alerts, count)]
    finally:
        alerts.close()


def requests(model: Model) -> list[pb.WatchAlertsRequest]:
    return [each for each in model.requests if isinstance(each, pb.WatchAlertsRequest)]


def test_every_alert_comes_once_through_as_many_connections_as_it_takes(
    client: Any, model: Model
) -> None:
    model.monitors.alerts = [alert(number) for number in range(10)]
    model.monitors.cut_after = 3
    found = watched(client, 10, from_oldest=True)
    assert [each.position for each in found] == [*range(10)]
    first, *others = requests(model)
    assert (first.from_oldest, first.resume_token) == (True, b"")
    assert [each.resume_token for each in others] == [b"2", b"5", b"8"]
    assert not any(each.from_oldest for each in others)


def test_what_is_raised_before_the_first_alert_and_between_connections_is_not_missed(
    client: Any, model: Model
) -> None:
    model.monitors.alerts = [alert(1)]
    opened = model.monitors.watch

    def cut_once(request: Any, context: Any) -> Any:
        events = opened(request, context)
        yield next(events)
        if len(requests(model)) == 1:
            model.monitors.raise_alert(alert(2))
            return
        yield from events

    model.monitors.watch = cut_once
    assert [each.position for each in watched(client, 1)] == [2]


def test_many_connections_without_an_alert_are_no_reason_to_give_up(
    client: Any, model: Model
) -> None:
    opened = model.monitors.watch

    def cut(request: Any, context: Any) -> Any:
        events = opened(request, context)
        yield next(events)
        if len(requests(model)) > 12:
            model.monitors.raise_alert(alert(3))
            yield from events

    model.monitors.watch = cut
    assert [each.position for each in watched(client, 1)] == [3]
    assert len(requests(model)) == 13


def test_what_was_lost_is_told_with_the_next_alert(client: Any, model: Model) -> None:
    model.monitors.alerts, model.monitors.lost = [alert(7), alert(8)], 5
    first, second = watched(client, 2, from_oldest=True)
    assert (first.lost_before, second.lost_before) == (5, 0)


def test_a_watcher_goes_on_from_an_alert_that_it_has(client: Any, model: Model) -> None:
    model.monitors.alerts = [alert(number) for number in range(4)]
    _, second = watched(client, 2, from_oldest=True)
    for given in (second, second.resume_token):
        assert [each.position for each in watched(client, 2, resume_from=given)] == [2, 3]
    for given in ("1", b"", client.alerts):
        with pytest.raises(InvalidRequest, match="resume_from"):
            watched(client, 1, resume_from=given)


def test_a_watcher_says_which_alerts_and_for_how_long(client: Any, model: Model) -> None:
    with pytest.raises(DeadlineExceeded):
        watched(client, 1, monitors=["rude"], level="upper", end_user="u", timeout=0.3)
    assert requests(model)[0].filter == pb.AlertFilter(
        monitors=[whole("rude")], level=alert_pb2.ALERT_LEVEL_UPPER, end_user="u"
    )


def test_a_server_that_is_gone_is_told_after_as_many_attempts_as_ever(
    connect: Callable[..., Any], model: Model
) -> None:
    def gone(request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    model.before = gone
    with pytest.raises(Unavailable):
        watched(connect(model="big"), 1)
    assert len(requests(model)) == 4


def test_a_watch_outlasts_a_server_that_is_gone_for_longer_than_any_call_is_tried(
    client: Any, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(request: Any, context: Any) -> None:
        if 1 < len(requests(model)) < 20:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone\n")

    model.before = gone
    model.monitors.alerts, model.monitors.cut_after = [alert(1), alert(2)], 1
    assert [each.position for each in watched(client, 2, from_oldest=True)] == [1, 2]
    assert len(requests(model)) == 20
    assert [each.resume_token for each in requests(model)[1:]] == [b"1"] * 19
    lost, back = [record.getMessage() for record in caplog.records]
    assert "no server" in lost
    assert "gone" in lost
    assert "\n" not in lost
    assert "connected again after" in back


def test_a_watch_outlasts_the_restart_of_its_server_and_misses_nothing(
    connect_to: Callable[..., Any],
) -> None:
    model, noticed = Model(), threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: noticed.set()
    logger = logging.getLogger("actserve")
    logger.addHandler(handler)
    with contextlib.ExitStack() as first:
        target = first.enter_context(serving(model))

        def restart() -> None:
            first.close()
            model.monitors.raise_alert(alert(2))
            noticed.wait(30)
            again.enter_context(serving(model, target))

        with contextlib.ExitStack() as again:
            alerts = connect_to(target, model="big").alerts.watch(from_oldest=True)
            model.monitors.raise_alert(alert(1))
            found = [next(alerts)]
            restarting = threading.Thread(target=restart)
            restarting.start()
            found.append(next(alerts))
            restarting.join()
            alerts.close()
    logger.removeHandler(handler)
    assert noticed.is_set()
    assert [each.position for each in found] == [1, 2]


def test_a_connection_that_is_made_again_at_once_is_nothing_to_tell(
    client: Any, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model.monitors.alerts = [alert(number) for number in range(4)]
    model.monitors.cut_after = 1
    watched(client, 4, from_oldest=True)
    assert not caplog.records


def test_a_watcher_gives_up_when_the_server_was_gone_for_as_long_as_it_says(
    client: Any, model: Model
) -> None:
    def gone(request: Any, context: Any) -> None:
        if len(requests(model)) > 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    model.before = gone
    model.monitors.alerts, model.monitors.cut_after = [alert(1), alert(2)], 1
    with pytest.raises(Unavailable, match="gone"):
        watched(client, 2, from_oldest=True, give_up_after=0.1)
    with pytest.raises(InvalidRequest, match="give_up_after is 0 seconds"):
        watched(client, 1, give_up_after=0)


def test_a_watcher_that_is_let_have_no_time_gives_up(
    connect: Callable[..., Any], model: Model
) -> None:
    def late(request: Any, context: Any) -> None:
        if isinstance(request, pb.WatchAlertsRequest):
            over = len(requests(model)) > 8  # It would never end.
            code = grpc.StatusCode.INTERNAL if over else grpc.StatusCode.DEADLINE_EXCEEDED
            context.abort(code, "late")

    model.before = late
    with pytest.raises(DeadlineExceeded):
        watched(connect(model="big"), 1)
    assert len(requests(model)) == 1


@pytest.mark.parametrize("seconds", [1 << 61, -(1 << 61), 253402300800])
def test_a_time_that_is_none_is_not_of_a_right_answer(
    client: Any, model: Model, seconds: int
) -> None:
    strange = alert(1)
    strange.raise_time.seconds = seconds
    model.monitors.alerts = [strange]
    with pytest.raises(BadResponse, match="time"):
        watched(client, 1, from_oldest=True)
    with pytest.raises(BadResponse, match="time"):
        client.alerts.get("a1")


def test_an_alert_is_told_in_full(client: Any, model: Model) -> None:
    made = alert(
        3,
        action=alert_pb2.ALERT_ACTION_PAUSE,
        end_user="u",
        trace_id="t",
        text="so",
        explanation="why",
        sample_index=2,
        delivery=alert_pb2.WebhookDelivery(state=alert_pb2.WEBHOOK_STATE_DEAD, attempts=4),
    )
    made.decide_by_time.FromSeconds(1_000_000_060)
    model.monitors.alerts = [made]
    found = client.alerts.get("a3")
    assert (found.id, found.monitor, found.level, found.action) == ("a3", "rude", "upper", "pause")
    assert (found.request_id, found.sample, found.trace_id) == ("call3", 2, "t")
    assert found.raise_time == datetime(2001, 9, 9, 1, 46, 43, tzinfo=timezone.utc)
    assert (found.decide_by - found.raise_time).seconds == 57
    assert (found.decision, found.text, found.explanation) == ("", "so", "why")
    assert (found.delivery.state, found.delivery.attempts) == ("dead", 4)
    told = found.to_json()
    assert "resume_token" not in told
    assert told["raise_time"] == "2001-09-09T01:46:43+00:00"


def test_a_decision_is_made_once(client: Any, model: Model) -> None:
    model.monitors.alerts = [alert(1)]
    (found,) = client.alerts.list()
    assert client.alerts.decide(found, "stop").decision == "stop"
    with pytest.raises(NotServed):
        client.alerts.decide(found.name, "proceed")
    with pytest.raises(InvalidRequest, match="'proceed' or 'stop'"):
        client.alerts.decide(found, "go on")
    with pytest.raises(NotFound):
        client.alerts.get("a9")


def test_a_pause_that_nobody_waits_for_has_lapsed(client: Any, model: Model) -> None:
    model.monitors.alerts = [alert(1, decision=alert_pb2.ALERT_DECISION_LAPSED)]
    (found,) = client.alerts.list()
    assert found.decision == "lapsed"
    with pytest.raises(InvalidRequest, match="'proceed' or 'stop'"):
        client.alerts.decide(found, "lapsed")


def test_alerts_are_listed_and_deleted_by_what_they_are(client: Any, model: Model) -> None:
    model.monitors.alerts = [alert(1), alert(2, end_user="u"), alert(3, "other")]
    assert [each.id for each in client.alerts.list()] == ["a3", "a2", "a1"]
    assert [each.id for each in client.alerts.list("rude")] == ["a2", "a1"]
    before = datetime(2020, 1, 1, tzinfo=timezone.utc)
    assert [each.id for each in client.alerts.list(undecided=True, before=before)]
    sent = next(each for each in reversed(model.requests) if isinstance(each, pb.ListAlertsRequest))
    assert sent.filter.before_time.seconds == before.timestamp()
    assert client.alerts.delete(end_user="u") == 1
    for given in ({}, {"everything": True, "level": "upper"}):
        with pytest.raises(InvalidRequest, match="which"):
            client.alerts.delete(**given)
    assert client.alerts.delete(everything=True) == 2
    with pytest.raises(InvalidRequest, match="time zone"):
        client.alerts.delete(before=datetime(2020, 1, 1))


def test_an_alert_of_an_answer_has_no_name_to_decide_by(client: Any) -> None:
    (found,) = client.generate("a", monitors="rude").alerts
    with pytest.raises(InvalidRequest, match="request_id"):
        client.alerts.decide(found, "stop")
