"""Generate, watched by monitors: who watches, what the call is told, and how it ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import alert_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import monitor_service_pb2 as monitors_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import Limits
from actserve_server.domain.principals import Role
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors.stored_alerts import NewAlert
from actserve_server.monitors.watched import Crossing, WatchedCall, Watcher
from actserve_server.rpc.requests import choosing_monitors, watched_calls
from actserve_server.rpc.requests.monitor_fields import MonitorRequest
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create, full, numbers, probe
from tests.contract.refusals import WIDTH

ALWAYS, NEVER = -1e6, 1e6
"""Thresholds."""
GENERATED = {"generated": {}}
STOP = {"threshold": ALWAYS, "stop": {}}
PAUSE = {"time_limit": {"nanos": 50_000_000}, "proceed_after": True}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Noted:
    """The alerts that a server has raised, as they were, in order."""

    def __init__(self) -> None:
        self.raised: list[tuple[WatchedCall, Crossing]] = []

    def __call__(self, new: Sequence[NewAlert]) -> None:
        self.raised += [(each.call, each.crossing) for each in new]

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(each.watcher.monitor, each.position) for _, each in self.raised]


@pytest.fixture
def alerts() -> Noted:
    return Noted()


@pytest.fixture
async def served(alerts: Noted) -> AsyncIterator[Served]:
    async with serving(FakeEngine()) as running:
        running.watching.alerts.listen(alerts)
        yield running


async def made(served: Served, name: str = "harm", **changes: Any) -> monitors_pb2.Monitor:
    return (await served.monitors.CreateMonitor(create(name, **changes))).monitor


async def told(served: Served, **fields: Any) -> list[Any]:
    metadata = fields.pop("metadata", None)
    return await collect(served.generation.Generate(watched(**fields), metadata=metadata))


def watched(**fields: Any) -> pb.GenerateRequest:
    """A small generation; `samples` and `max_tokens` are of its sampling."""
    sampling = {name: fields.pop(name) for name in ("samples", "max_tokens") if name in fields}
    return generate(sampling={"max_tokens": 5, "temperature": 0, **sampling}, **fields)


def finishes(events: list[Any]) -> list[pb.SampleFinished]:
    return [e.sample_finished for e in events if e.WhichOneof("event") == "sample_finished"]


def ids(events: list[Any], sample: int = 0) -> list[int]:
    chunks = [e.tokens for e in events if e.WhichOneof("event") == "tokens"]
    return [token for each in chunks if each.sample_index == sample for token in each.ids]


async def test_a_call_is_watched_by_the_monitors_of_its_tenant(
    served: Served, alerts: Noted
) -> None:
    plain = await told(served)
    await made(served, upper={"threshold": ALWAYS})
    await made(served, "paused", upper={"threshold": ALWAYS}, paused=True)
    await made(served, "named", upper={"threshold": ALWAYS}, watch={"named_only": True})
    events = await told(served)
    assert events[1:] == plain[1:], "nothing that was not asked for"
    assert alerts.told == [(full("harm"), 0)]


async def test_a_stop_is_told_as_what_ended_the_sample(served: Served, alerts: Noted) -> None:
    plain = await told(served)
    await made(served, upper=STOP, positions={"span": {"start": 8}})
    events = await told(served, samples=2)
    for sample, finished in enumerate(finishes(events)):
        assert finished.reason == pb.FINISH_REASON_MONITOR
        assert finished.monitor == full("harm")
        assert ids(events, sample) == ids(plain)[:3]
    assert events[-1].finished.usage.output_tokens == 6
    assert [(c.position, c.sample_index) for _, c in alerts.raised] == [(8, 0), (8, 1)]


async def test_interventions_and_a_pause_change_what_they_say_alone(
    served: Served, alerts: Noted
) -> None:
    change = addition(9 * numbers(WIDTH))
    plain = await told(served)
    changed = await told(served, interventions=[{**change, "positions": {"span": {"start": 7}}}])
    pausing = await made(
        served, upper={"threshold": ALWAYS, "pause": PAUSE}, positions={"span": {"start": 6}}
    )
    assert ids(await told(served)) == ids(plain)
    await served.monitors.DeleteMonitor(monitors_pb2.DeleteMonitorRequest(name=pausing.name))
    intervene = {"threshold": ALWAYS, "intervene": {"interventions": [change]}}
    await made(served, "intervenes", upper=intervene, positions={"span": {"start": 6}})
    events = await told(served)
    assert ids(events) == ids(changed) != ids(plain)
    assert not finishes(events)[0].interventions, "none of the call's own"


async def test_a_call_is_told_what_its_monitors_have_changed_apart_from_its_own_changes(
    served: Served,
) -> None:
    def intervene(*changes: dict[str, Any], threshold: float = ALWAYS) -> dict[str, Any]:
        return {"threshold": threshold, "intervene": {"interventions": changes}}

    change = addition(9 * numbers(WIDTH))
    earlier = {**change, "positions": {"prompt": {}}}
    both_sites = {"sites": [site(0), site(2)], "add": {**change["add"], "coefficient": 0.5}}
    own = {**change, "positions": {"span": {"end": 2}}}
    plain = await told(served, interventions=[own])
    await made(
        served,
        "b",
        lower=intervene(change, earlier, threshold=ALWAYS - 1),
        positions={"span": {"start": 7}},
    )
    await made(served, "a", upper=intervene(both_sites), positions={"prompt": {}})
    await made(served, "last", upper=intervene(change), positions={"span": {"start": 10}})
    await made(served, "never", upper=intervene(change, threshold=NEVER))
    (finished,) = finishes(await told(served, interventions=[own]))
    assert finished.interventions == finishes(plain)[0].interventions
    assert not finished.monitor_scores
    after_prompt, later = finished.monitor_interventions
    assert (after_prompt.monitor, after_prompt.first_position) == (full("a"), 6)
    assert (later.monitor, later.first_position) == (full("b"), 8)
    assert after_prompt.level == alert_pb2.ALERT_LEVEL_UPPER
    assert later.level == alert_pb2.ALERT_LEVEL_LOWER
    # Tokens at 6 to 9 are run after the prompt, and the one at 10 is not.
    assert [each.rows for each in after_prompt.interventions] == [2 * 4]
    assert [each.rows for each in later.interventions] == [2, 0], "in the order of the level"
    assert later.interventions[0].changed_rows == 2
    assert later.interventions[0].mean_relative_change > 0
    assert not later.interventions[1].HasField("mean_relative_change")


async def test_a_sample_that_a_monitor_stops_tells_what_others_have_changed_before(
    served: Served,
) -> None:
    change = addition(numbers(WIDTH))
    intervene = {"threshold": ALWAYS, "intervene": {"interventions": [change]}}
    await made(served, "changes", upper=intervene, positions={"prompt": {}})
    await made(served, "stops", upper=STOP, positions={"span": {"start": 8}})
    (finished,) = finishes(await told(served))
    assert finished.monitor == full("stops")
    (changed,) = finished.monitor_interventions
    assert changed.monitor == full("changes")
    assert [each.rows for each in changed.interventions] == [2], "of the tokens at 6 and 7"


async def test_scores_are_told_as_asked(served: Served) -> None:
    direction = numbers(WIDTH)
    await made(
        served,
        "b",
        upper={"threshold": ALWAYS, "flag": True},
        probes=[probe(1, direction, bias=0.5)],
    )
    await made(served, "a", upper={"threshold": NEVER}, positions={"prompt": {}})
    await made(served, "none", upper={"threshold": NEVER}, positions={"token_ids": {"ids": [1]}})
    assert not finishes(await told(served))[0].monitor_scores
    events = await told(served, score_detail=pb.SCORE_DETAIL_TOKEN, capture={"sites": [site(1)]})
    (finished,) = finishes(events)
    assert [each.monitor for each in finished.monitor_scores] == [
        full(x) for x in ("a", "b", "none")
    ]
    prompt, every, none = finished.monitor_scores
    (_, rows) = matrices(events)[0, 0]
    network = ProbeNetwork((Site(HookPoint.RESID_POST, 1),), direction[None], bias=0.5)
    wanted = network.apply([rows])[:, 0]
    assert list(every.positions) == [*range(10)]
    got = np.frombuffer(every.token_scores.data, "<f4")
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert every.tokens == 10
    assert every.score == got[-1]
    assert every.highest_score == got.max()
    assert every.highest_position == got.argmax()
    assert every.level == alert_pb2.ALERT_LEVEL_UPPER
    assert list(prompt.positions) == [*range(6)]
    assert prompt.level == alert_pb2.ALERT_LEVEL_UNSPECIFIED
    assert none == pb.MonitorScore(monitor=full("none"))
    (finished,) = finishes(await told(served, score_detail=pb.SCORE_DETAIL_SAMPLE))
    assert [each.tokens for each in finished.monitor_scores] == [6, 10, 0]
    assert not any(
        each.positions or each.HasField("token_scores") for each in finished.monitor_scores
    )


async def test_a_call_is_told_of_flagged_alerts_and_alerts_of_the_call(
    served: Served, alerts: Noted
) -> None:
    monitor = await made(
        served,
        lower={"threshold": ALWAYS, "flag": True},
        upper={"threshold": ALWAYS + 1, "stop": {}},
        positions=GENERATED,
    )
    events = await told(
        served, end_user="ann", metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)
    )
    (alert,) = [e.alert for e in events if e.WhichOneof("event") == "alert"]
    call_id = events[0].started.call_id
    assert not alert.name
    assert not alert.resume_token
    assert (alert.monitor, alert.monitor_etag) == (monitor.name, monitor.etag)
    assert (alert.level, alert.position, alert.sample_index) == (alert_pb2.ALERT_LEVEL_LOWER, 6, 0)
    assert (alert.watched_call_id, alert.end_user, alert.trace_id) == (call_id, "ann", TRACE)
    assert alert.action == alert_pb2.ALERT_ACTION_UNSPECIFIED
    assert alert.HasField("raise_time")
    calls = {call for call, _ in alerts.raised}
    assert calls == {WatchedCall("", "fake", call_id, "ann", TRACE)}
    assert [int(c.level.name) for _, c in alerts.raised] == [1, 2]


async def test_calls_are_chosen_by_name_end_user_and_share(served: Served, alerts: Noted) -> None:
    upper = {"threshold": ALWAYS}
    await made(served, "named", upper=upper, watch={"named_only": True})
    await made(served, "ann", upper=upper, watch={"end_users": ["ann", "bob"]})
    await made(served, "share", upper=upper, watch={"share": 0.5})

    async def by(**fields: Any) -> set[str]:
        alerts.raised.clear()
        await told(served, **fields)
        return {monitor.rpartition("/")[2] for monitor, _ in alerts.told}

    assert await by() - {"share"} == set()
    assert await by(end_user="bob") - {"share"} == {"ann"}
    assert await by(end_user="eve", monitors=[full("named")]) - {"share"} == {"named"}
    assert await by(monitors=[full("ann"), full("share")]) == {"ann", "share"}
    often = [len(await by()) for _ in range(40)]
    assert 5 < sum(often) < 35


async def test_monitors_of_another_tenant_watch_nothing_and_are_not_found(
    alerts: Noted, tmp_path: Path
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("one", "acme", Role.EXPERIMENTER),
        ("two", "other", Role.EXPERIMENTER),
    )
    async with serving(FakeEngine(), token_file=tokens) as served:
        served.watching.alerts.listen(alerts)
        await served.monitors.CreateMonitor(create(upper=STOP), metadata=bearing("one"))
        events = await told(served, metadata=bearing("two"))
        assert finishes(events)[0].reason == pb.FINISH_REASON_LENGTH
        refused = await failure(
            served.generation.Generate(watched(monitors=[full("harm")]), metadata=bearing("two"))
        )
        assert refused.reason == "RESOURCE_NOT_FOUND"
        events = await told(served, metadata=bearing("one"))
        assert finishes(events)[0].reason == pb.FINISH_REASON_MONITOR
    assert {call.tenant for call, _ in alerts.raised} == {"acme"}


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no such monitor": (
        {"monitors": [full("nobody")]},
        "RESOURCE_NOT_FOUND",
        "monitors[0]",
        "no monitor",
    ),
    "no monitor at all": (
        {"monitors": ["models/fake"]},
        "RESOURCE_NOT_FOUND",
        "monitors[0]",
        "no monitor",
    ),
    "an empty name": ({"monitors": [""]}, "FIELD_REQUIRED", "monitors[0]", "not set"),
    "twice": ({"monitors": [full("on")] * 2}, "FIELD_INVALID", "monitors[1]", "twice"),
    "a paused one": (
        {"monitors": [full("paused")]},
        "RESOURCE_NOT_READY",
        "monitors[0]",
        "is paused",
    ),
    "too many": ({"monitors": [full("on")] * 65}, "FIELD_INVALID", "monitors", "at most 64"),
    "a long end user": ({"end_user": "é" * 129}, "FIELD_INVALID", "end_user", "258 bytes"),
    "an unknown detail": (
        {"score_detail": 9},
        "FIELD_INVALID",
        "score_detail",
        "SCORE_DETAIL_TOKEN",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_watched_so_is_refused(served: Served, name: str) -> None:
    await made(served, "on")
    await made(served, "paused", paused=True)
    fields, reason, at, said = REFUSED[name]
    refused = await failure(served.generation.Generate(watched(**fields)))
    assert refused.reason == reason
    assert refused.field == at
    assert said in refused.message


async def test_scores_of_more_tokens_than_a_message_holds_are_refused() -> None:
    engine = FakeEngine(limits=Limits(max_sequence_tokens=1 << 18))
    async with serving(engine) as served:
        await made(served)
        fields = {"max_tokens": 240_000, "score_detail": pb.SCORE_DETAIL_TOKEN}
        refused = await failure(served.generation.Generate(watched(**fields)))
        assert refused.reason == "FIELD_INVALID"
        assert refused.field == "score_detail"


async def test_a_sample_that_may_be_acted_on_leaves_room_to_run_its_last_token() -> None:
    async with serving(FakeEngine(limits=Limits(max_sequence_tokens=12))) as served:
        plain = await told(served, max_tokens=6)
        await made(served, upper={"threshold": NEVER, "stop": {}})
        events = await told(served, max_tokens=6, score_detail=pb.SCORE_DETAIL_SAMPLE)
        assert ids(events) == ids(plain)[:5]
        assert finishes(events)[0].reason == pb.FINISH_REASON_LENGTH
        assert finishes(events)[0].monitor_scores[0].tokens == 11
    async with serving(FakeEngine(limits=Limits(max_sequence_tokens=7))) as served:
        await made(served, upper={"threshold": NEVER, "stop": {}})
        refused = await failure(served.generation.Generate(watched(max_tokens=1)))
        assert refused.reason == "SAMPLING_INVALID"
        assert "one less than others" in refused.message


async def test_a_score_that_is_not_finite_withholds_the_answer(served: Served) -> None:
    large = np.full(WIDTH, 3e38, np.float32)
    await made(served, probes=[probe(1, large)])
    failed = await failure(served.generation.Generate(watched()))
    assert failed.code is grpc.StatusCode.INTERNAL
    assert failed.reason == "MONITOR_INCOMPLETE"
    assert failed.details["ErrorInfo"].metadata["resource_name"] == full("harm")


async def test_a_database_that_was_never_read_lets_no_call_go_unwatched(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable() -> int:
        raise ActserveError(Reason.STORE_UNREACHABLE, "gone")

    # By then the server has looked, and does not while this goes on.
    await eventually(lambda: served.watching.live._version is not None)
    monkeypatch.setattr(served.watching.registry, "version", unreachable)
    monkeypatch.setattr(served.watching.live, "_version", None)
    failed = await failure(served.generation.Generate(watched()))
    assert failed.reason == "STORE_UNREACHABLE"


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_monitor_that_cannot_watch_here_fails_its_calls_and_holds_none_of_them(
    tmp_path: Path, by_name: bool
) -> None:
    store = {"data_dir": str(tmp_path)}
    async with serving(FakeEngine(), **store) as first:
        await made(first)
    broken = FakeEngine(monitors_unserved="failed the self-test")
    async with serving(broken, **store) as served:
        for _ in range(3):
            call = watched(monitors=[full("harm")] if by_name else [])
            failed = await failure(served.generation.Generate(call))
            assert failed.reason == "SITE_NOT_SERVED"
        found = await served.watching.live.find("", "harm")
        assert found is not None
        assert found.error is not None
        # It would hold all that was there when each call had it.
        assert found.error.__traceback__ is None
        assert found.error.__context__ is None


async def test_what_monitors_may_switch_on_counts_among_the_interventions_of_a_call() -> None:
    change = addition(numbers(WIDTH))
    intervene = {"threshold": NEVER, "intervene": {"interventions": [change, change]}}
    async with serving(
        FakeEngine(limits=Limits(max_sequence_tokens=64, max_interventions=5))
    ) as served:
        for name in ("a", "b"):
            await made(served, name, upper=intervene)
        assert finishes(await told(served, interventions=[change]))
        refused = await failure(served.generation.Generate(watched(interventions=[change, change])))
        assert refused.reason == "TOO_MANY_INTERVENTIONS"
        assert refused.details["ErrorInfo"].metadata == {"interventions": "6", "limit": "5"}
        assert "may switch on 4 more" in refused.message


async def test_no_more_monitors_may_choose_one_call_than_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing_monitors, "MAX_CHOOSING", 2)
    async with serving(FakeEngine()) as served:
        await made(served, "all")
        await made(served, "some", watch={"share": 0.5})
        one_more: dict[str, Any] = {
            "any": {},
            "of-ann": {"watch": {"end_users": ["ann"]}},
            "by-chance": {"watch": {"share": 0.1}},
        }
        for name, fields in one_more.items():
            request = create(name, **fields)
            refused = await failure(served.monitors.CreateMonitor(request))
            assert (refused.reason, refused.field) == ("STORE_QUOTA_EXCEEDED", "monitor.watch")
            assert "2 monitors" in refused.message
            assert "at most 2 may choose the same call" in refused.message
        # Those that choose nothing are no more, until they are to.
        await made(served, "named", watch={"named_only": True})
        await made(served, "paused", paused=True)
        for name, fields in {"named": {"watch": {}}, "paused": {"paused": False}}.items():
            request = monitors_pb2.UpdateMonitorRequest(
                monitor={"name": full(name), **fields}, update_mask={"paths": [*fields]}
            )
            refused = await failure(served.monitors.UpdateMonitor(request))
            assert refused.reason == "STORE_QUOTA_EXCEEDED"
        # Whoever watches already may be changed.
        request = monitors_pb2.UpdateMonitorRequest(
            monitor={"name": full("some"), "watch": {"share": 0.9}, "labels": {"a": "b"}},
            update_mask={"paths": ["watch", "labels"]},
        )
        await served.monitors.UpdateMonitor(request)
        assert finishes(await told(served, monitors=[full("named")]))


async def test_monitors_of_other_end_users_are_of_other_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing_monitors, "MAX_CHOOSING", 2)
    async with serving(FakeEngine()) as served:
        for name in ("ann", "bob", "eve"):
            for number in (1, 2):
                await made(served, f"{name}-{number}", watch={"end_users": [name]})
        refused = await failure(
            served.monitors.CreateMonitor(create("both", watch={"end_users": ["zoe", "bob"]}))
        )
        assert refused.reason == "STORE_QUOTA_EXCEEDED"
        assert (await failure(served.monitors.CreateMonitor(create("all")))).reason == (
            "STORE_QUOTA_EXCEEDED"
        )
        await made(served, "zoe", watch={"end_users": ["zoe"]})


async def test_of_monitors_that_are_stored_at_once_no_more_may_choose_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing_monitors, "MAX_CHOOSING", 2)
    async with serving(FakeEngine()) as served:
        calls = [served.monitors.CreateMonitor(create(f"m{number}")) for number in range(8)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(each, BaseException) for each in ends) == 2


async def test_a_call_that_too_many_monitors_have_chosen_is_refused(
    served: Served, alerts: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await made(served, f"m{number}", upper={"threshold": ALWAYS})
    monkeypatch.setattr(choosing_monitors, "MAX_CHOOSING", 2)  # As another replica has it.
    refused = await failure(served.generation.Generate(watched()))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "monitors")
    assert "3 monitors would watch the call" in refused.message
    assert alerts.told == []
    # Those that it names are not counted among them.
    assert finishes(await told(served, monitors=[full("m0")]))


async def test_an_error_of_the_positions_of_a_monitor_names_it(served: Served) -> None:
    await made(served, positions={"turns": {"roles": ["user"]}})
    refused = await failure(served.generation.Generate(watched()))
    assert refused.reason == "FIELD_INVALID"
    assert refused.message.startswith(f"prompt: {full('harm')} cannot watch this prompt: ")


async def test_monitors_look_through_long_prompts_beside_the_event_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    made_of = MonitorRequest.watcher

    def noting(of: MonitorRequest, name: str, etag: str, prompt: TokenizedPrompt) -> Watcher:
        threads.append(threading.get_ident())
        return made_of(of, name, etag, prompt)

    monkeypatch.setattr(MonitorRequest, "watcher", noting)
    await made(served, positions={"token_ids": {"ids": [1]}})
    await told(served)
    monkeypatch.setattr(watched_calls, "QUICK_TOKENS", 1)
    await told(served)
    assert [each == threading.get_ident() for each in threads] == [True, False]


async def test_fetching_is_not_watched(served: Served, alerts: Noted) -> None:
    await made(served, upper=STOP)
    await collect(served.generation.FetchActivations(fetch()))
    assert alerts.told == []
