"""Replays score prompts by monitors as they are, without acting and without an alert."""

import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from actserve.v1 import alert_pb2, generation_service_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors import sample_scores
from actserve_server.monitors.sample_scores import Reached, SampleScores
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    decoded,
    eventually,
    failure,
    fetch,
    inline,
    intervention,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create, full, numbers, probe
from tests.contract.refusals import WIDTH

TEXTS = ("what a fine day", "no", "a dreadful night it was")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(FakeEngine()) as running:
        yield running


def item(text: str, **changes: Any) -> dict[str, Any]:
    return {"prompt": {"text": text}, **changes}


def replay(*names: str, items: Any = None, **changes: Any) -> pb.ReplayMonitorsRequest:
    return pb.ReplayMonitorsRequest(
        monitors=[full(name) for name in names],
        items=[item(text) for text in TEXTS] if items is None else items,
        **changes,
    )


async def replayed(
    served: Served, request: pb.ReplayMonitorsRequest, **options: Any
) -> list[pb.ReplayedItem]:
    """The items, in order. The stream is as the contract says."""
    started, *items, finished = await collect(served.monitors.ReplayMonitors(request, **options))
    assert started.started.call_id
    assert finished.HasField("finished")
    found = {each.item.item_index: each.item for each in items}
    assert len(found) == len(items) == len(request.items)
    return [found[index] for index in sorted(found)]


async def test_two_monitors_score_what_their_formulas_say_of_fetched_rows(served: Served) -> None:
    first, second = numbers(WIDTH), numbers(WIDTH, seed=1)
    await served.monitors.CreateMonitor(create("a", probes=[probe(1, first)]))
    ema = {"ema": {"weight": 0.5}, "reduction": "REDUCTION_MAX"}
    await served.monitors.CreateMonitor(
        create(
            "b",
            probes=[probe(2, second, bias=1.0)],
            aggregator=ema,
            positions={"span": {"start": 1}},
            lower={"threshold": -1000.0, "stop": {}},
            upper={"threshold": 1000.0},
        )
    )
    request = replay("a", "b", each_token=True)
    request.items[0].key = "fine"
    items = await replayed(served, request)
    assert [each.key for each in items] == ["fine", "", ""]
    rows = matrices(
        await collect(
            served.generation.FetchActivations(fetch(*TEXTS, capture={"sites": [site(1), site(2)]}))
        )
    )
    for index, told in enumerate(items):
        assert not told.status.code
        assert [each.monitor for each in told.scores] == [full("a"), full("b")]
        one = rows[index, 0][1] @ first
        numbers_of = rows[index, 1][1][1:] @ second + 1
        average, other = numbers_of[0], []
        for number in numbers_of:
            average = 0.5 * number + 0.5 * average
            other.append(average)
        other = np.maximum.accumulate(other)
        for score, wanted, start in ((told.scores[0], one, 0), (told.scores[1], other, 1)):
            np.testing.assert_allclose(decoded(score.token_scores), wanted, atol=1e-4)
            assert list(score.positions) == list(range(start, start + len(wanted)))
            assert score.tokens == len(wanted)
            assert score.score == pytest.approx(wanted[-1], abs=1e-4)
            assert score.highest_score == pytest.approx(max(wanted), abs=1e-4)
            assert score.highest_position == start + int(np.argmax(wanted))
        above = alert_pb2.ALERT_LEVEL_UPPER if max(one) > 1 else 0
        assert told.scores[0].level == above
        # An action does not end it.
        assert told.scores[1].level == alert_pb2.ALERT_LEVEL_LOWER
    alerts = await served.monitors.ListAlerts(pb.ListAlertsRequest())
    assert not alerts.alerts


async def test_long_prompts_are_scored_where_they_hold_up_no_call(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, threads = SampleScores.score, set[threading.Thread]()

    def noting(scores: SampleScores, end: int | None = None) -> Any:
        threads.add(threading.current_thread())
        return score(scores, end)

    monkeypatch.setattr(SampleScores, "score", noting)
    monkeypatch.setattr(sample_scores, "QUICK_NUMBERS", 3)
    await served.monitors.CreateMonitor(create("a"))
    await replayed(served, replay("a", items=[item("no")]))
    assert threads == {threading.current_thread()}
    threads.clear()
    await replayed(served, replay("a", items=[item(TEXTS[0])]))
    assert threads
    assert threading.current_thread() not in threads


async def test_without_each_token_only_what_sums_it_up_is_sent(served: Served) -> None:
    await served.monitors.CreateMonitor(create("a", paused=True))
    for told in await replayed(served, replay("a")):
        assert told.scores[0].tokens > 0
        assert not told.scores[0].positions
        assert not told.scores[0].HasField("token_scores")


async def test_positions_of_an_item_stand_in_place_of_those_of_monitors(served: Served) -> None:
    await served.monitors.CreateMonitor(create("a", positions={"generated": {}}))
    own, none = await replayed(
        served,
        replay(
            "a", items=[item(TEXTS[0], positions={"last": {}}), item(TEXTS[0])], each_token=True
        ),
    )
    (score,) = own.scores
    assert list(score.positions) == [len(TEXTS[0])]
    assert none.scores == [generation_service_pb2.MonitorScore(monitor=full("a"))]


async def test_interventions_of_an_item_are_made_before_it_is_scored(served: Served) -> None:
    direction = numbers(WIDTH)
    await served.monitors.CreateMonitor(create("a", probes=[probe(1, direction)]))
    push = intervention(site(1), add={"vector": inline(direction), "coefficient": 3.0})
    plain, pushed = await replayed(
        served, replay("a", items=[item(TEXTS[0]), item(TEXTS[0], interventions=[push])])
    )
    more = pushed.scores[0].score - plain.scores[0].score
    assert more == pytest.approx(3 * float(direction @ direction), rel=1e-4)


async def test_an_item_that_fails_says_why_and_the_others_are_scored(served: Served) -> None:
    await served.monitors.CreateMonitor(create("a"))
    wrong = [
        {},
        item(TEXTS[0], key="k" * 257),
        item(TEXTS[0], positions={"text": {"text": "night"}}),
        item(TEXTS[0], interventions=[intervention(site(99), zero={})]),
    ]
    *failed, good = await replayed(served, replay("a", items=[*wrong, item(TEXTS[0])]))
    assert good.scores[0].tokens == len(TEXTS[0]) + 1
    for index, (told, says) in enumerate(
        zip(failed, ("not set", "257 bytes", "night", "layer"), strict=True)
    ):
        assert told.status.code
        assert not told.scores
        assert f"items[{index}]" in told.status.message
        assert says in told.status.message


async def test_monitors_of_others_are_not_there_and_readers_may_not_intervene(
    tmp_path: Any,
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("a", "ann", Role.EXPERIMENTER),
        ("r", "ann", Role.READER),
        ("b", "bob", Role.EXPERIMENTER),
    )
    async with serving(FakeEngine(), token_file=tokens) as served:
        await served.monitors.CreateMonitor(create("a"), metadata=bearing("a"))
        hidden = await failure(served.monitors.ReplayMonitors(replay("a"), metadata=bearing("b")))
        assert (hidden.reason, hidden.field) == ("RESOURCE_NOT_FOUND", "monitors[0]")
        assert len(await replayed(served, replay("a"), metadata=bearing("r"))) == len(TEXTS)
        push = intervention(site(1), zero={})
        request = replay("a", items=[item(TEXTS[0], interventions=[push])])
        refused = await failure(served.monitors.ReplayMonitors(request, metadata=bearing("r")))
        assert refused.reason == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("names", "changes", "why", "field"),
    [
        ([], {}, "FIELD_REQUIRED", "monitors"),
        (["a"], {"items": []}, "FIELD_REQUIRED", "items"),
        (["a", "a"], {}, "FIELD_INVALID", "monitors[1]"),
        (["a"] * 9, {}, "FIELD_INVALID", "monitors"),
        (["other"], {}, "RESOURCE_NOT_FOUND", "monitors[0]"),
        (["a"], {"items": [item("hi")] * 1025}, "TOO_MANY_ITEMS", "items"),
    ],
)
async def test_a_wrong_request_is_refused(
    served: Served, names: list[str], changes: dict[str, Any], why: str, field: str
) -> None:
    await served.monitors.CreateMonitor(create("a"))
    refused = await failure(served.monitors.ReplayMonitors(replay(*names, **changes)))
    assert (refused.reason, refused.field) == (why, field)
    assert served.engine.counters.started == 0


async def test_long_prompts_are_scored_beside_the_event_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    score = SampleScores.score

    def noting(of: SampleScores, end: int | None = None) -> list[Reached]:
        threads.add(threading.get_ident())
        return score(of, end)

    monkeypatch.setattr(sample_scores, "QUICK_NUMBERS", 0)
    monkeypatch.setattr(SampleScores, "score", noting)
    await served.monitors.CreateMonitor(create("a"))
    await replayed(served, replay("a"))
    assert threads
    assert threading.get_ident() not in threads


async def test_a_reader_that_leaves_ends_the_runs() -> None:
    async with serving(FakeEngine(token_delay_s=60)) as served:
        await served.monitors.CreateMonitor(create("a"))
        stream = served.monitors.ReplayMonitors(replay("a"))
        await stream.read()
        stream.cancel()
        await eventually(lambda: not served.engine.counters.running)
