"""Alerts: stored once raised, told once and in order to whoever watches, on whatever replica, and
to nobody else. Each promise is held in both databases."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from actserve.v1 import alert_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors import alert_tokens
from actserve_server.monitors.watched import Decision, LevelName, Pause, Stop
from actserve_server.storage.tables import alert_totals, alerts
from tests.contract.alerts import (
    call,
    crossing,
    name,
    raise_,
    raise_at_once,
    watching,
)
from tests.contract.harness import (
    Failure,
    Served,
    bearing,
    eventually,
    failure,
    generate,
    serving,
    write_tokens,
)
from tests.contract.monitors import create, full

CONTINUE, STOP = alert_pb2.ALERT_DECISION_PROCEED, alert_pb2.ALERT_DECISION_STOP
VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
READER = bearing("of-a-reader")
PAUSE = Pause(30.0, proceed_after=False)


@pytest.fixture
async def served(store: dict[str, str]) -> AsyncIterator[Served]:
    """A server that stores in an empty database."""
    async with serving(FakeEngine(), **store) as running:
        yield running


@pytest.fixture
async def one() -> AsyncIterator[Served]:
    """A server whose database does not matter."""
    async with serving(FakeEngine()) as running:
        yield running


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.EXPERIMENTER),
        ("of-language", "language", Role.EXPERIMENTER),
        ("of-a-reader", "vision", Role.READER),
    )


async def get(served: Served, alert: str, **options: Any) -> alert_pb2.Alert:
    return (await served.monitors.GetAlert(pb.GetAlertRequest(name=name(alert)), **options)).alert


async def listed(served: Served, metadata: Any = None, **filter_: Any) -> list[float]:
    """The scores of all alerts, the newest first."""
    found, token = [], ""
    while True:
        page = await served.monitors.ListAlerts(
            pb.ListAlertsRequest(page_size=3, page_token=token, filter=filter_), metadata=metadata
        )
        found += [each.score for each in page.alerts]
        token = page.next_page_token
        if not token:
            return found


async def decide(served: Served, alert: str, decision: int, **options: Any) -> Any:
    request = pb.DecideAlertRequest(name=name(alert), decision=decision)  # type: ignore[arg-type]
    return await served.monitors.DecideAlert(request, **options)


async def delete(served: Served, metadata: Any = None, **filter_: Any) -> int:
    request = pb.DeleteAlertsRequest(filter=filter_)
    return (await served.monitors.DeleteAlerts(request, metadata=metadata)).alerts


async def watch_failure(served: Served, metadata: Any = None, **request: Any) -> Failure:
    stream = served.monitors.WatchAlerts(pb.WatchAlertsRequest(**request), metadata=metadata)
    return await failure(stream)


async def test_a_text_may_have_any_character(served: Served) -> None:
    told = replace(crossing(), text="a\0b\N{SNOWMAN}")
    alert = await served.watching.alerts.raised(call(), told)
    # No database that is served can store a NUL in a text, and such a token may be generated.
    assert (await get(served, alert)).text == "a\N{REPLACEMENT CHARACTER}b\N{SNOWMAN}"
    await served.watching.alert_store.explain("", alert, "c\0d")
    assert (await get(served, alert)).explanation == "c\N{REPLACEMENT CHARACTER}d"


async def test_an_alert_says_what_happened_and_nothing_of_a_text(served: Served) -> None:
    (alert,) = await raise_(served, 2.5, end_user="ann", action=Stop(), webhook="https://a.test")
    got = await get(served, alert)
    assert got.name == name(alert)
    assert got.monitor == full("harm")
    assert got.monitor_etag == "etag"
    assert got.level == alert_pb2.ALERT_LEVEL_UPPER
    assert (got.score, got.position, got.sample_index) == (2.5, 3, 1)
    assert (got.watched_call_id, got.end_user, got.trace_id) == ("call", "ann", "0a1b")
    assert abs(got.raise_time.seconds - time.time()) < 60
    assert got.action == alert_pb2.ALERT_ACTION_STOP
    assert got.delivery.state == alert_pb2.WEBHOOK_STATE_WAITING
    assert not got.HasField("decide_by_time")
    assert not got.text
    assert got.resume_token


async def test_texts_are_stored_whatever_characters_they_hold(served: Served) -> None:
    # Models say NUL, too, which PostgreSQL has in no text.
    strange = replace(crossing(), text="a\0b\n\N{PILE OF POO}")
    strange_id, other_id = await asyncio.gather(
        served.watching.alerts.raised(call(), strange),
        served.watching.alerts.raised(call(), crossing(3.0)),
    )
    await served.watching.alert_store.explain("", strange_id, "says \0")

    found = await get(served, strange_id)
    assert found.text == "a\N{REPLACEMENT CHARACTER}b\n\N{PILE OF POO}"
    assert found.explanation == "says \N{REPLACEMENT CHARACTER}"
    assert (await get(served, other_id)).score == 3.0


async def test_watchers_get_each_alert_once_and_in_order(served: Served) -> None:
    await raise_(served, 1.0)
    async with watching(served) as first, watching(served) as second:
        await raise_(served, 2.0, 3.0, 4.0)
        assert await first.scores(3) == await second.scores(3) == [2, 3, 4]


async def test_a_watcher_goes_on_where_it_was_cut(served: Served) -> None:
    async with watching(served) as reader:
        began = reader.token
        await raise_(served, 1.0, 2.0)
        assert await reader.scores(1) == [1]
        cut = reader.token
    await raise_(served, 3.0)
    async with watching(served, resume_token=cut) as reader:
        assert await reader.scores(2) == [2, 3]
    async with watching(served, resume_token=began) as reader:
        assert await reader.scores(3) == [1, 2, 3]


async def test_a_token_from_before_the_first_alert_of_all_tells_it(served: Served) -> None:
    async with watching(served) as reader:
        token = reader.token
    await raise_(served, 1.0)
    async with watching(served, resume_token=token) as reader:
        assert await reader.scores(1) == [1]


async def test_a_watcher_may_begin_with_the_oldest(served: Served) -> None:
    await raise_(served, 1.0, 2.0)
    async with watching(served, from_oldest=True) as reader:
        assert await reader.scores(2) == [1, 2]


async def test_the_first_alert_of_all_may_come_while_a_watcher_begins_with_the_oldest(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = served.app.database
    honest = database.write

    async def after_an_alert(work: Any) -> Any:
        monkeypatch.undo()
        await raise_(served, 1.0)
        return await honest(work)

    # Which the watcher does once it has seen that there is none.
    monkeypatch.setattr(database, "write", after_an_alert)
    async with watching(served, from_oldest=True) as reader:
        assert await reader.scores(1) == [1]


async def test_a_filter_lets_through_what_fits(served: Served) -> None:
    async with (
        watching(served, filter={"monitors": [full("b")]}) as of_monitor,
        watching(served, filter={"level": alert_pb2.ALERT_LEVEL_LOWER}) as of_level,
        watching(served, filter={"end_user": "ann"}) as of_user,
    ):
        await raise_(served, 1.0, monitor="a")
        await raise_(served, 2.0, monitor="b", level=LevelName.LOWER)
        await raise_(served, 3.0, monitor="b", end_user="ann")
        assert await of_monitor.scores(2) == [2, 3]
        assert await of_level.scores(1) == [2]
        assert await of_user.scores(1) == [3]
    assert await listed(served, monitors=[full("b")]) == [3, 2]
    assert await listed(served, level=alert_pb2.ALERT_LEVEL_UPPER) == [3, 1]
    assert await listed(served, end_user="ann") == [3]
    assert await listed(served, before_time={"seconds": 1}) == []
    assert await listed(served, before_time={"seconds": 1 << 33}) == [3, 2, 1]


async def test_pages_have_every_alert_once_the_newest_first(served: Served) -> None:
    await raise_(served, *range(8))
    assert await listed(served) == [7, 6, 5, 4, 3, 2, 1, 0]


async def test_many_at_once_are_stored_and_told_once_each(served: Served) -> None:
    async with watching(served) as reader:
        await raise_at_once(served, range(1200))
        assert sorted(await reader.scores(1200)) == list(range(1200))


@pytest.mark.timeout(600)
async def test_a_watcher_that_stops_for_a_while_holds_up_nobody_and_misses_nothing(
    store: dict[str, str],
) -> None:
    """At more alerts than the connection and its reader take, and however long that takes: the
    server ends a stream that nobody reads for a minute, which is another test's."""
    async with (
        serving(FakeEngine(), **store, reader_timeout_s=3600) as served,
        watching(served) as stopped,
        watching(served) as other,
    ):
        told = 0
        for start in range(0, 6000, 1000):
            await raise_at_once(served, range(start, start + 1000))
            told += len(await other.scores(1000))
        assert told == 6000
        assert sorted(await stopped.scores(6000)) == list(range(6000))
        stopped.cancel()
        await raise_(served, 6000.0)
        async with watching(served, resume_token=stopped.token) as reader:
            assert await reader.scores(1) == [6000]


async def test_a_watcher_is_told_the_alerts_of_every_replica(store: dict[str, str]) -> None:
    async with (
        serving(FakeEngine(), **store) as first,
        serving(FakeEngine(), **store) as second,
        watching(first) as reader,
    ):
        await raise_(second, 1.0)
        await raise_(first, 2.0)
        await raise_(second, 3.0)
        assert await reader.scores(3) == [1, 2, 3]
        async with watching(second, resume_token=reader.token) as elsewhere:
            await raise_(first, 4.0)
            assert await elsewhere.scores(1) == [4]


async def test_what_is_gone_is_told_before_what_comes_after_it(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), max_alerts=3, **store) as served:
        async with watching(served) as reader:
            token = reader.token
        await raise_(served, *range(10))
        assert await listed(served) == [9, 8, 7]
        async with watching(served, resume_token=token) as reader:
            assert (await reader.next()).alerts == 7
            assert await reader.scores(3) == [7, 8, 9]
        # Nothing that was asked for.
        async with watching(served, from_oldest=True) as reader:
            assert await reader.scores(3) == [7, 8, 9]


async def test_what_is_gone_of_other_monitors_than_asked_for_is_not_told(
    store: dict[str, str],
) -> None:
    async with serving(FakeEngine(), max_alerts=2, **store) as served:
        async with watching(served) as reader:
            token = reader.token
        await raise_(served, 1.0, 2.0, 3.0, monitor="a")
        await raise_(served, 4.0, monitor="b")
        wanted = {"monitors": [full("b")]}
        async with watching(served, resume_token=token, filter=wanted) as reader:
            assert await reader.scores(1) == [4]
        wanted = {"monitors": [full("a")]}
        async with watching(served, resume_token=token, filter=wanted) as reader:
            assert (await reader.next()).alerts == 2
            assert await reader.scores(1) == [3]


async def test_what_was_deleted_is_told_as_gone_where_it_was(served: Served) -> None:
    async with watching(served) as reader:
        token = reader.token
    await raise_(served, 1.0)
    await raise_(served, 2.0, 3.0, monitor="other")
    await raise_(served, 4.0)
    assert await delete(served, monitors=[full("other")]) == 2
    async with watching(served, resume_token=token) as reader:
        assert await reader.scores(1) == [1]
        assert (await reader.next()).alerts == 2
        assert await reader.scores(1) == [4]


async def test_alerts_go_when_their_time_is_over(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), **store) as served:
        clock = [time.time()]
        served.watching.alert_store._clock = lambda: clock[0]  # pyright: ignore[reportPrivateUsage]
        async with watching(served) as reader:
            token = reader.token
        await raise_(served, 1.0)
        clock[0] += 29 * 24 * 3600
        await raise_(served, 2.0)
        await served.watching.alert_store.expire()
        assert await listed(served) == [2, 1]
        clock[0] += 2 * 24 * 3600
        await served.watching.alert_store.expire()
        assert await listed(served) == [2]
        async with watching(served, resume_token=token) as reader:
            assert (await reader.next()).alerts == 1
            assert await reader.scores(1) == [2]
        # And all that is known of a tenant goes with its last ones.
        clock[0] += 90 * 24 * 3600
        await served.watching.alert_store.expire()
        await raise_(served, 3.0)
        async with watching(served, resume_token=token) as reader:
            assert (await reader.next()).alerts >= 1
            assert await reader.scores(1) == [3]


async def test_counts_of_accounts_are_those_of_the_stored_alerts(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), max_alerts=5, **store) as served:
        await raise_(served, *range(4))
        await raise_(served, *range(4), tenant="vision/a")
        await delete(served, before_time={"seconds": 1 << 33})

        def read(connection: sa.Connection) -> tuple[Any, Any]:
            counted = connection.execute(sa.select(alert_totals)).all()
            stored = connection.execute(
                sa.select(alerts.c.account, sa.func.count()).group_by(alerts.c.account)
            ).all()
            return sorted(map(tuple, counted)), sorted(map(tuple, stored))

        counted, stored = await served.app.database.read(read)
        assert counted == stored == [("vision", 2)]


async def test_a_tenant_has_its_share_and_pushes_out_nobody_elses(
    store: dict[str, str], tokens: Path
) -> None:
    options = {"max_alerts": 6, "tenant_share": 0.5, "token_file": tokens, **store}
    async with serving(FakeEngine(), **options) as served:
        await raise_(served, 1.0, 2.0, tenant="language")
        await raise_(served, *range(20), tenant="vision")
        assert await listed(served, VISION) == [19, 18, 17]
        assert await listed(served, LANGUAGE) == [2, 1]


async def test_tenants_have_nothing_of_each_others_alerts(
    store: dict[str, str], tokens: Path
) -> None:
    async with serving(FakeEngine(), token_file=tokens, **store) as served:
        async with (
            watching(served, VISION) as own,
            watching(served, LANGUAGE) as others,
        ):
            before = others.token
            (theirs,) = await raise_(served, 1.0, tenant="language", action=PAUSE)
            await raise_(served, *range(20), tenant="language")
            (mine,) = await raise_(served, 2.0, tenant="vision")
            assert await own.scores(1) == [2]
            assert await others.scores(2) == [1, 0]
        request = pb.GetAlertRequest(name=name(theirs))
        absent = pb.GetAlertRequest(name=name("0" * 24))
        refused = [
            await failure(served.monitors.GetAlert(each, metadata=VISION))
            for each in (request, absent)
        ]
        assert [each.reason for each in refused] == ["RESOURCE_NOT_FOUND"] * 2
        assert refused[0].message == refused[1].message.replace("0" * 24, theirs)
        with pytest.raises(grpc.aio.AioRpcError):
            await decide(served, theirs, CONTINUE, metadata=VISION)
        assert await listed(served, VISION) == [2]
        assert await delete(served, VISION) == 1
        assert len(await listed(served, LANGUAGE)) == 21
        # Neither does a token of theirs say anything, nor do own ones tell how many they have.
        refusal = await watch_failure(served, VISION, resume_token=before)
        assert (refusal.reason, refusal.field) == ("RESUME_TOKEN_INVALID", "resume_token")
        with pytest.raises(grpc.aio.AioRpcError):
            await get(served, mine, metadata=VISION)
        async with watching(served, VISION, from_oldest=True) as reader:
            await raise_(served, 3.0, tenant="vision")
            assert await reader.scores(1) == [3]
            places = [alert_tokens.read(each.token, "vision", "fake") for each in (own, reader)]
            assert places[1] - places[0] == 1


async def test_a_reader_watches_and_decides_nothing(tokens: Path) -> None:
    async with serving(FakeEngine(), token_file=tokens) as served:
        (alert,) = await raise_(served, 1.0, tenant="vision", action=PAUSE)
        assert (await get(served, alert, metadata=READER)).score == 1
        for refused in (
            served.monitors.DecideAlert(
                pb.DecideAlertRequest(name=name(alert), decision=CONTINUE), metadata=READER
            ),
            served.monitors.DeleteAlerts(pb.DeleteAlertsRequest(), metadata=READER),
        ):
            assert (await failure(refused)).reason == "PERMISSION_DENIED"


@pytest.mark.parametrize("decision", [CONTINUE, STOP])
async def test_a_decision_reaches_the_sample_that_waits(served: Served, decision: int) -> None:
    (alert,) = await raise_(served, 1.0, action=PAUSE)
    got = await get(served, alert)
    assert got.action == alert_pb2.ALERT_ACTION_PAUSE
    assert got.decide_by_time.ToMicroseconds() - got.raise_time.ToMicroseconds() == 30_000_000
    assert not got.decision
    waiting = asyncio.create_task(served.watching.alerts.decision(call(), alert, PAUSE))
    answered = await decide(served, alert, decision)
    assert answered.alert.decision == decision
    assert await waiting is (Decision.PROCEED if decision == CONTINUE else Decision.STOP)


async def test_a_decision_may_be_made_on_another_replica(store: dict[str, str]) -> None:
    async with (
        serving(FakeEngine(), **store) as first,
        serving(FakeEngine(), **store) as second,
    ):
        (alert,) = await raise_(first, 1.0, action=PAUSE)
        waiting = asyncio.create_task(first.watching.alerts.decision(call(), alert, PAUSE))
        await decide(second, alert, CONTINUE)
        async with asyncio.timeout(10):
            assert await waiting is Decision.PROCEED


@pytest.mark.parametrize("continues", [True, False])
async def test_a_sample_decides_for_itself_once_its_time_is_over(
    served: Served, continues: bool
) -> None:
    pause = Pause(0.05, proceed_after=continues)
    (alert,) = await raise_(served, 1.0, action=pause)
    own = Decision.PROCEED if continues else Decision.STOP
    assert await served.watching.alerts.decision(call(), alert, pause) is own
    wire = CONTINUE if continues else STOP
    assert (await get(served, alert)).decision == wire
    refused = await failure(
        served.monitors.DecideAlert(
            pb.DecideAlertRequest(name=name(alert), decision=STOP if continues else CONTINUE)
        )
    )
    assert refused.reason == "ALERT_DECIDED"


async def test_the_first_decision_holds(served: Served) -> None:
    (alert,) = await raise_(served, 1.0, action=PAUSE)
    results = await asyncio.gather(
        *(decide(served, alert, each) for each in (CONTINUE, STOP)), return_exceptions=True
    )
    (first,) = [each for each in results if not isinstance(each, BaseException)]
    assert (await get(served, alert)).decision == first.alert.decision
    # The same again, by a client that was cut off before the answer.
    assert (await decide(served, alert, first.alert.decision)).alert == first.alert


async def test_nothing_is_decided_about_an_alert_that_waits_for_nothing(served: Served) -> None:
    (alert,) = await raise_(served, 1.0, action=Stop())
    refused = await failure(
        served.monitors.DecideAlert(pb.DecideAlertRequest(name=name(alert), decision=STOP))
    )
    assert (refused.reason, refused.field) == ("ALERT_DECIDED", "name")


@pytest.mark.parametrize("decision", [CONTINUE, STOP])
async def test_of_a_call_that_has_ended_nothing_can_be_decided_any_more(
    served: Served, decision: int
) -> None:
    pause = {"threshold": -1e6, "pause": {"time_limit": {"seconds": 60}}}
    await served.monitors.CreateMonitor(create(upper=pause))
    async with watching(served) as reader:
        generating = served.generation.Generate(generate())
        alert = (await reader.next()).name.rpartition("/")[2]
    assert not (await get(served, alert)).decision
    generating.cancel()

    async def is_lapsed() -> bool:
        return (await get(served, alert)).decision == alert_pb2.ALERT_DECISION_LAPSED

    await eventually(is_lapsed, within_s=20)
    assert await listed(served, undecided=True) == []
    refused = await failure(
        served.monitors.DecideAlert(
            pb.DecideAlertRequest(name=name(alert), decision=decision)  # type: ignore[arg-type]
        )
    )
    assert refused.reason == "ALERT_DECIDED"
    assert "its call has ended" in refused.message
    assert refused.details["ErrorInfo"].metadata["decision"] == "LAPSED"


async def test_what_was_decided_does_not_lapse(served: Served) -> None:
    (alert,) = await raise_(served, 1.0, action=PAUSE)
    await decide(served, alert, STOP)
    await served.watching.alert_store.lapse("", alert)
    assert (await get(served, alert)).decision == STOP


async def test_nobody_says_of_an_alert_that_it_has_lapsed(served: Served) -> None:
    (alert,) = await raise_(served, 1.0, action=PAUSE)
    lapsed = alert_pb2.ALERT_DECISION_LAPSED
    request = pb.DecideAlertRequest(name=name(alert), decision=lapsed)
    refused = await failure(served.monitors.DecideAlert(request))
    assert (refused.reason, refused.field) == ("FIELD_REQUIRED", "decision")


async def test_those_that_wait_are_found_and_not_deleted(served: Served) -> None:
    (waits,) = await raise_(served, 1.0, action=PAUSE)
    await raise_(served, 2.0)
    assert await listed(served, undecided=True) == [1]
    assert await delete(served) == 1
    assert await listed(served) == [1]
    await decide(served, waits, STOP)
    assert await listed(served, undecided=True) == []
    assert await delete(served) == 1
    assert await listed(served) == []


async def test_a_sample_whose_server_died_waits_for_nothing_any_more(served: Served) -> None:
    pause = Pause(5.0, proceed_after=True)
    (alert,) = await raise_(served, 1.0, action=pause)
    later = time.time() + 5 + 61
    served.watching.alert_store._clock = lambda: later  # pyright: ignore[reportPrivateUsage]
    assert (await get(served, alert)).decision == CONTINUE
    assert await listed(served, undecided=True) == []
    assert await delete(served) == 1


async def test_what_cannot_be_stored_is_not_raised(one: Served) -> None:
    one.app.database.close()
    one.app.database._down_until = time.monotonic() + 60  # pyright: ignore[reportPrivateUsage]

    def unreachable(*_: object) -> None:
        raise ActserveError(Reason.STORE_UNREACHABLE, "")

    one.app.database.write = unreachable  # type: ignore[method-assign]
    with pytest.raises(ActserveError) as error:
        await one.watching.alerts.raised(call(), crossing())
    assert error.value.reason is Reason.STORE_UNREACHABLE


async def test_a_stream_ends_with_a_reason_when_the_server_does(one: Served) -> None:
    async with watching(one) as reader:
        await raise_(one, 1.0)
        assert await reader.scores(1) == [1]
        draining = asyncio.create_task(one.app.drain())
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await reader.next()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        await draining


def _watch(**request: Any) -> Any:
    return pb.WatchAlertsRequest(**request)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (_watch(filter={"undecided": True}), "FIELD_INVALID", "filter.undecided"),
        (_watch(filter={"before_time": {"seconds": 1}}), "FIELD_INVALID", "filter.before_time"),
        (_watch(filter={"monitors": [full("a")] * 65}), "FIELD_INVALID", "filter.monitors"),
        (_watch(filter={"monitors": [""]}), "FIELD_REQUIRED", "filter.monitors[0]"),
        (_watch(filter={"monitors": ["x"]}), "RESOURCE_NOT_FOUND", "filter.monitors[0]"),
        (_watch(filter={"level": 7}), "FIELD_INVALID", "filter.level"),
        (_watch(filter={"end_user": "x" * 257}), "FIELD_INVALID", "filter.end_user"),
        (_watch(resume_token=b"x"), "RESUME_TOKEN_INVALID", "resume_token"),
        (
            _watch(resume_token=alert_tokens.write("", "fake", 1 << 62)),
            "RESUME_TOKEN_INVALID",
            "resume_token",
        ),
        (_watch(resume_token=b"x", from_oldest=True), "FIELD_INVALID", "from_oldest"),
        (_watch(model="models/other"), "MODEL_NOT_FOUND", "model"),
        (pb.ListAlertsRequest(page_token="x"), "FIELD_INVALID", "page_token"),
        (pb.ListAlertsRequest(page_token="eA=="), "FIELD_INVALID", "page_token"),
        (
            pb.ListAlertsRequest(filter={"before_time": {"seconds": -1}}),
            "FIELD_INVALID",
            "filter.before_time",
        ),
        (pb.GetAlertRequest(), "FIELD_REQUIRED", "name"),
        (pb.GetAlertRequest(name="models/fake/monitors/x"), "RESOURCE_NOT_FOUND", "name"),
        (pb.DecideAlertRequest(name=name("x")), "FIELD_REQUIRED", "decision"),
        (pb.DecideAlertRequest(name=name("x"), decision=9), "FIELD_REQUIRED", "decision"),  # type: ignore[arg-type]
        (pb.DecideAlertRequest(name=name("x"), decision=STOP), "RESOURCE_NOT_FOUND", "name"),
        (pb.DeleteAlertsRequest(model="models/other"), "MODEL_NOT_FOUND", "model"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_reason(
    one: Served, request_: Any, reason: str, field: str
) -> None:
    method = type(request_).__name__.removesuffix("Request")
    refused = await failure(getattr(one.monitors, method)(request_))
    assert (refused.reason, refused.field) == (reason, field), refused
