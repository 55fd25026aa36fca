"""A sample that is watched does what its monitors say at the token that they say it of, and tells
nothing else than it would have told."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Replace
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import (
    Aggregator,
    Attention,
    Ema,
    RollingMean,
    ScoreReduction,
)
from actserve_server.domain.runs import (
    Capture,
    FinishReason,
    Intervention,
    Rows,
    Run,
    RunEvent,
    Sampling,
    Tokens,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors.watched import (
    Decision,
    Intervene,
    LevelName,
    Pause,
    Stop,
    Watcher,
)
from actserve_server.monitors.watching import Sample, watched
from tests.unit.monitors.watching import (
    ALL,
    ALWAYS,
    CALL,
    GREEDY,
    NEVER,
    PROMPT,
    SEEDED,
    SITES,
    Ahead,
    Noted,
    Told,
    add,
    from_,
    level,
    network,
    outputs,
    run_of,
    told,
    watch,
    watcher,
)

P = len(PROMPT)
TOKENS = GREEDY.max_tokens
POSITIONS = [0, 7, 8, P - 2, P - 1, P, P + 1, P + 4, P + TOKENS - 2, P + TOKENS - 1]
"""Prompt and generated ones, at the ends of both and of what comes together."""
LOWER, UPPER = LevelName
PAUSE = Pause(60.0, proceed_after=False)
OWN = (Capture((SITES[0], Site(HookPoint.Z, 1)), ALL), Capture((SITES[1],), from_(P - 3)))


ENGINES = {
    "a row at once": lambda: FakeEngine(rows_per_event=1),
    "8 rows at once": FakeEngine,
    "tokens at once": lambda: Ahead(rows_per_event=100),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> FakeEngine:
    return ENGINES[request.param]()


def at(position: int, action: Stop | Intervene | Pause | None, **fields: object) -> Watcher:
    """Reaches its upper level at one position."""
    return watcher(level(ALWAYS, action), selection=from_(position), **fields)  # type: ignore[arg-type]


async def plain(engine: FakeEngine, run: Run) -> Told:
    return await told(engine.run(replace(run, id="plain")))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_stop_ends_a_sample_after_the_token_that_brought_it_there(
    engine: FakeEngine, position: int, sampling: Sampling
) -> None:
    run, alerts = run_of(sampling, captures=OWN, interventions=(add(1),)), Noted()
    every = watcher(level(NEVER), name="every")
    found = await watch(engine, run, [at(position, Stop()), every], alerts)
    tokens = max(0, position + 1 - P)
    assert found.finished.reason is FinishReason.MONITOR
    assert found.finished.ended_by == "models/fake/monitors/m"
    assert found.finished.stopped_by is None
    assert alerts.raised_at == [("m", 2, position)]
    assert [each.tokens for each in found.finished.scores] == [1, position + 1]
    assert engine.counters.running == set()
    if not tokens:
        assert (found.ids, found.text, found.rows) == ([], "", {})
        assert found.end[1:3] == (0, [[], []])
        return
    wanted = await plain(engine, replace(run, sampling=replace(sampling, max_tokens=tokens)))
    assert found.ids == wanted.ids
    assert found.text == wanted.text
    assert found.logprobs == wanted.logprobs
    assert found.rows == wanted.rows
    assert found.end[1:] == wanted.end[1:]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_to_intervene_is_the_same_run_with_the_intervention_given_for_what_comes_after(
    engine: FakeEngine, position: int, sampling: Sampling
) -> None:
    own = add(1, from_(3))
    run = run_of(sampling, captures=OWN, interventions=(own,))
    every = watcher(level(NEVER), name="every", seed=3)
    watchers = [at(position, Intervene((add(2),))), every]
    found = await watch(engine, run, watchers, each_token=True)
    after = add(2, from_(max(position + 1, P)))
    changed = replace(run, interventions=(own, after))
    wanted = await plain(engine, changed)
    scored = found.finished.scores[1].token_scores
    rows = await outputs(engine, changed, every.network)
    np.testing.assert_allclose(scored, rows[: len(scored), 0], rtol=1e-5)
    assert found.ids == wanted.ids
    assert found.text == wanted.text
    assert found.logprobs == wanted.logprobs
    assert found.rows == wanted.rows
    reason, count, captured, reports, stopped_by = wanted.end
    assert found.end == (reason, count, captured, reports[:1], stopped_by)
    if position < P + 3:
        assert found.ids != (await plain(engine, run)).ids, "nothing was changed"


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_a_pause_that_goes_on_is_the_run_without_a_monitor(
    engine: FakeEngine, position: int, sampling: Sampling
) -> None:
    run, alerts = run_of(sampling, captures=OWN, interventions=(add(1),)), Noted()
    found = await watch(engine, run, [at(position, PAUSE)], alerts)
    wanted = await plain(engine, run)
    assert alerts.asked == 1
    assert (found.ids, found.text, found.logprobs) == (wanted.ids, wanted.text, wanted.logprobs)
    assert found.rows == wanted.rows
    assert found.end == wanted.end


@pytest.mark.parametrize("position", [0, P - 1, P, P + 4, P + TOKENS - 1])
async def test_a_pause_that_is_stopped_tells_what_a_stop_does(
    engine: FakeEngine, position: int
) -> None:
    run = run_of(SEEDED, captures=OWN)
    paused = await watch(engine, run, [at(position, PAUSE)], Noted(decisions=[Decision.STOP]))
    stopped = await watch(engine, replace(run, id="s"), [at(position, Stop())])
    assert (paused.ids, paused.text, paused.rows) == (stopped.ids, stopped.text, stopped.rows)
    assert paused.end == stopped.end
    assert paused.finished.ended_by == "models/fake/monitors/m"


async def test_nothing_of_a_token_is_told_while_it_is_paused() -> None:
    engine, alerts = FakeEngine(), Noted(deciding=asyncio.Event())
    run = run_of(captures=OWN)
    sample = Sample(run=run, index=0, call=CALL, watchers=[at(P + 3, PAUSE)])
    seen: list[RunEvent] = []
    reading = asyncio.create_task(told(watched(engine, alerts, sample), seen=seen))
    await alerts.was_asked.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert engine.counters.running == set(), "the run is ended while it is paused"
    tokens = [event for event in seen if isinstance(event, Tokens)]
    assert [event.position for event in tokens] == [P, P + 1, P + 2]
    rows = [int(p) for event in seen if isinstance(event, Rows) for p in event.positions]
    assert max(rows) == P + 1, "as of a run that had ended there"
    assert alerts.deciding
    alerts.deciding.set()
    await reading


@pytest.mark.parametrize("tokens", [1, 2, 10])
async def test_a_token_is_told_once_its_own_row_was_scored_the_last_one_included(
    tokens: int,
) -> None:
    engine, scored = FakeEngine(), [0]

    class Counting(FakeEngine):
        async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
            async with aclosing(engine.run(run)) as events:
                async for event in events:
                    if isinstance(event, Rows):
                        scored[0] = max(scored[0], int(event.positions[-1]) + 1)
                    yield event

    run = run_of(replace(GREEDY, max_tokens=tokens))
    sample = Sample(run=run, index=0, call=CALL, watchers=[watcher(level(NEVER, Stop()))])
    async with aclosing(watched(Counting(), Noted(), sample)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                assert event.position + len(event.ids) <= scored[0]
    assert scored[0] == P + tokens


async def test_a_monitor_without_actions_holds_nothing_back_and_runs_nothing_more() -> None:
    engine = FakeEngine()
    run = run_of(captures=OWN)
    alerts = Noted()
    watchers = [watcher(level(ALWAYS)), watcher(level(NEVER), name="other", seed=4)]
    found = await watch(engine, run, watchers, alerts)
    assert engine.counters.started == 1
    wanted = await plain(engine, run)
    assert (found.ids, found.text, found.rows) == (wanted.ids, wanted.text, wanted.rows)
    assert found.end == wanted.end
    assert alerts.raised_at == [("m", 2, 0)]
    assert [each.tokens for each in found.finished.scores] == [P + TOKENS - 1] * 2


AGGREGATORS = [
    Aggregator(smoothing, reduction)
    for smoothing in (None, Ema(0.4), RollingMean(3), Attention(), Attention(4))
    for reduction in ScoreReduction
]


@pytest.mark.parametrize("acts", [False, True], ids=["no action", "an action"])
async def test_scores_are_those_of_the_formulas_whatever_came_together(
    engine: FakeEngine, acts: bool
) -> None:
    run = run_of(SEEDED)
    selections = [ALL, from_(P), Selection(Spans(((2, P - 1),))), Selection(Spans(()))]
    selections.append(Selection(Spans(((0, NO_END),)), frozenset(b"aeiou r")))
    watchers = [
        watcher(
            level(NEVER, Stop() if acts and number == 0 else None),
            aggregator=aggregator,
            selection=selections[number % len(selections)],
            seed=number,
            name=f"m{number}",
            attends=isinstance(aggregator.smoothing, Attention),
        )
        for number, aggregator in enumerate(AGGREGATORS * 2)
    ]
    found = await watch(engine, run, watchers, each_token=True)
    ids = [*PROMPT, *found.ids]
    for each, score in zip(watchers, found.finished.scores, strict=True):
        assert score.watcher is each
        rows = await outputs(engine, run, each.network)
        positions = each.selection.among(ids if acts else ids[:-1])
        taken = rows[positions]
        wanted = each.aggregator.scores(
            list(taken) if rows.shape[1] > 1 else taken[:, 0].tolist(), each.network.bias
        )
        assert score.tokens == len(positions)
        assert score.positions.tolist() == positions.tolist()
        np.testing.assert_allclose(score.token_scores, wanted, rtol=1e-5)
        if len(positions):
            assert score.score == pytest.approx(wanted[-1], rel=1e-5)
            assert score.highest == pytest.approx(wanted.max(), rel=1e-5)
            assert score.highest_position == positions[wanted.argmax()]
        assert score.level is None


async def test_each_level_is_raised_once_at_the_first_token_above_it(engine: FakeEngine) -> None:
    run = run_of()
    numbers = (await outputs(engine, run, network()))[:-1, 0]
    low, high = np.quantile(numbers, [0.6, 0.9]).tolist()
    alerts = Noted()
    each = watcher(level(low, name=LOWER, flag=True), level(high, flag=True))
    found = await watch(engine, run, [each], alerts)
    first = [int((numbers > threshold).argmax()) for threshold in (low, high)]
    assert alerts.raised_at == [("m", 1, first[0]), ("m", 2, first[1])]
    assert sorted((int(c.level.name), c.position) for c in found.flagged) == [
        (1, first[0]),
        (2, first[1]),
    ]
    assert found.finished.scores[0].level is each.levels[1]
    for crossing in alerts.crossings:
        assert crossing.score == pytest.approx(numbers[crossing.position])


@pytest.mark.parametrize(
    ("lower", "upper", "reason"),
    [
        (Intervene((add(2),)), Stop(), FinishReason.MONITOR),
        (Stop(), Intervene((add(2),)), FinishReason.LENGTH),
        (Stop(), None, FinishReason.MONITOR),
        (None, Stop(), FinishReason.MONITOR),
    ],
)
async def test_a_token_that_reaches_both_levels_raises_both_and_the_upper_action_holds(
    engine: FakeEngine,
    lower: Stop | Intervene | None,
    upper: Stop | Intervene | None,
    reason: FinishReason,
) -> None:
    alerts = Noted()
    both = watcher(level(ALWAYS, lower, LOWER), level(ALWAYS + 1, upper), selection=from_(P + 2))
    found = await watch(engine, run_of(), [both], alerts)
    assert alerts.raised_at == [("m", 1, P + 2), ("m", 2, P + 2)]
    assert found.finished.reason is reason


async def test_levels_act_one_after_the_other(engine: FakeEngine) -> None:
    run = run_of(captures=OWN)
    changes = (add(2), add(3))
    alerts = Noted()
    watchers = [
        at(P + 1, Intervene(changes[:1]), name="a", seed=1),
        at(P + 3, PAUSE, name="b", seed=2),
        at(P + 4, Intervene(changes[1:]), name="c", seed=3),
        at(P + 6, None, name="d", seed=4),
        at(P + 7, Stop(), name="e", seed=5),
        at(P + 8, Stop(), name="f", seed=6),
    ]
    found = await watch(engine, run, watchers, alerts)
    assert alerts.raised_at == [
        (name, 2, P + position) for name, position in zip("abcde", (1, 3, 4, 6, 7), strict=True)
    ]
    changes = (
        replace(changes[0], selection=from_(P + 2)),
        replace(changes[1], selection=from_(P + 5)),
    )
    short = replace(run.sampling, max_tokens=8)
    wanted = await plain(engine, replace(run, sampling=short, interventions=changes))
    assert (found.ids, found.text, found.rows) == (wanted.ids, wanted.text, wanted.rows)
    assert found.finished.ended_by == "models/fake/monitors/e"


async def test_of_monitors_that_act_at_one_token_a_stop_comes_first(engine: FakeEngine) -> None:
    alerts = Noted()
    watchers = [
        at(P + 2, Intervene((add(2),)), name="a"),
        at(P + 2, PAUSE, name="b"),
        at(P + 2, Stop(), name="c"),
    ]
    found = await watch(engine, run_of(), watchers, alerts)
    assert found.finished.ended_by == "models/fake/monitors/c"
    assert len(found.ids) == 3
    assert alerts.asked == 0
    assert alerts.raised_at == [(name, 2, P + 2) for name in "abc"]
    assert await asyncio.gather(*alerts.lapsing) == ["alert 2"]


async def test_a_pause_and_interventions_at_one_token_are_both_done(engine: FakeEngine) -> None:
    watchers = [
        at(P + 2, Intervene((add(2),)), name="a"),
        at(P + 2, PAUSE, name="b"),
        at(P + 2, PAUSE, name="c"),
    ]
    alerts = Noted()
    found = await watch(engine, run_of(), watchers, alerts)
    wanted = await plain(engine, run_of(interventions=(add(2, from_(P + 3)),)))
    assert alerts.asked == 2
    assert alerts.lapsing == [], "both were decided"
    assert found.ids == wanted.ids
    alerts = Noted(decisions=[Decision.PROCEED, Decision.STOP])
    found = await watch(engine, run_of(), watchers, alerts)
    assert found.finished.ended_by == "models/fake/monitors/c"


async def test_rows_that_a_monitor_replaces_one_by_one_keep_their_positions() -> None:
    engine = FakeEngine()
    rows = np.random.default_rng(3).standard_normal((8, 16)).astype(np.float32)
    spans = Selection(Spans(((P - 4, P + 4),)))
    change = Intervention((SITES[0],), spans, Replace(rows))
    found = await watch(engine, run_of(), [at(P, Intervene((change,)))])
    after = Intervention((SITES[0],), Selection(Spans(((P + 1, P + 4),))), Replace(rows[5:]))
    wanted = await plain(engine, run_of(interventions=(after,)))
    assert found.ids == wanted.ids != (await plain(engine, run_of())).ids


async def test_a_monitor_that_counts_the_prompt_alone_holds_back_no_generated_token() -> None:
    engine = FakeEngine()
    only = watcher(level(NEVER, Stop()), selection=Selection(Spans(((0, P),))))
    found = await watch(engine, run_of(), [only])
    assert found.ids == (await plain(engine, run_of())).ids
    assert engine.counters.started == 2, "the last token is not run"


async def test_alerts_tell_the_text_around_a_token_where_they_may() -> None:
    engine, alerts = FakeEngine(rows_per_event=100), Noted()
    texts = tuple(chr(each) for each in PROMPT)
    found = await watch(
        engine,
        run_of(),
        [at(3, None), at(P + 2, None, name="n")],
        alerts,
        prompt_texts=texts,
        text_tokens=64,
    )
    said = {each.position: each.text for each in alerts.crossings}
    assert said[3] == bytes(PROMPT).decode()
    assert said[P + 2] == bytes(PROMPT).decode() + found.text[:3]
    alerts = Noted()
    await watch(engine, run_of(), [at(3, None)], alerts)
    assert alerts.crossings[0].text == ""


async def test_an_alert_says_what_runs_its_token_again() -> None:
    engine, alerts = FakeEngine(), Noted()
    run = run_of(interventions=(add(1),))
    await watch(engine, run, [at(P + 1, Intervene((add(2),))), at(P + 4, None, name="n")], alerts)
    numbers = {}
    for crossing in alerts.crossings:
        assert crossing.sequence
        assert len(crossing.sequence.token_ids) == crossing.position + 1
        rows = await outputs(engine, crossing.sequence, network())
        numbers[crossing.position] = float(rows[crossing.position, 0])
    assert {each.position: pytest.approx(each.score) for each in alerts.crossings} == numbers


async def test_many_samples_are_watched_at_once_each_by_itself() -> None:
    engine = FakeEngine(token_delay_s=0.0001)
    actions = [Stop(), Intervene((add(2),)), PAUSE, None]
    cases = [(n, actions[n % 4], P - 2 + n % (TOKENS + 2)) for n in range(120)]
    runs = [run_of(replace(SEEDED, seed=n), id=f"r{n}", captures=OWN[:1]) for n, _, _ in cases]
    found = await asyncio.gather(
        *(
            watch(engine, run, [at(position, action)])
            for run, (_, action, position) in zip(runs, cases, strict=True)
        )
    )
    alone = FakeEngine()
    for each, run, (n, action, position) in zip(found, runs, cases, strict=True):
        wanted = await watch(alone, run, [at(position, action)])
        assert (each.ids, each.text, each.rows) == (wanted.ids, wanted.text, wanted.rows), n
        assert each.end == wanted.end
    assert engine.counters.most_running > 20
    assert engine.counters.running == set()


async def test_closing_ends_the_run_and_the_wait_for_a_decision_but_stores_the_alert() -> None:
    engine = FakeEngine()
    alerts = Noted(deciding=asyncio.Event())
    sample = Sample(run=run_of(), index=0, call=CALL, watchers=[at(P + 1, PAUSE)])
    reading = asyncio.create_task(told(watched(engine, alerts, sample)))
    await alerts.was_asked.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert alerts.cancelled == 1
    assert await asyncio.gather(*alerts.lapsing) == ["alert 1"]
    assert engine.counters.running == set()

    alerts = Noted(storing=asyncio.Event())
    events = watched(engine, alerts, replace(sample, watchers=[at(P, None)]))
    async for event in events:
        if isinstance(event, Tokens) and event.position == P + 3:
            break
    await events.aclose()
    assert engine.counters.running == set()
    assert alerts.crossings == []
    assert alerts.storing
    alerts.storing.set()
    await alerts.has_stored.wait()


async def test_an_alert_lapses_also_where_the_call_ends_before_it_is_stored() -> None:
    alerts = Noted(storing=asyncio.Event())
    sample = Sample(run=run_of(), index=0, call=CALL, watchers=[at(P + 1, PAUSE)])
    reading = asyncio.create_task(told(watched(FakeEngine(), alerts, sample)))
    for _ in range(200):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert alerts.crossings == []
    assert alerts.storing
    alerts.storing.set()
    assert await asyncio.gather(*alerts.lapsing) == ["alert 1"]
    assert alerts.asked == 0


@pytest.mark.parametrize("action", [None, Stop(), Intervene((add(2),)), PAUSE])
async def test_an_alert_that_cannot_be_stored_withholds_the_end(
    action: Stop | Intervene | Pause | None,
) -> None:
    engine = FakeEngine()
    alerts = Noted(error=ActserveError(Reason.STORE_UNREACHABLE, "gone"))
    with pytest.raises(ActserveError) as raised:
        await watch(engine, run_of(), [at(P + 2, action)], alerts)
    assert raised.value.reason is Reason.STORE_UNREACHABLE
    assert engine.counters.running == set()


async def test_the_end_waits_until_the_alerts_are_stored() -> None:
    alerts = Noted(storing=asyncio.Event())
    sample = Sample(
        run=run_of(), index=0, call=CALL, watchers=[at(3, None), at(P, Stop(), name="n")]
    )
    seen: list[object] = []
    reading = asyncio.create_task(told(watched(FakeEngine(), alerts, sample), seen=seen))
    for _ in range(200):
        await asyncio.sleep(0)
    assert all(isinstance(each, Tokens) for each in seen)
    assert not reading.done()
    assert alerts.storing
    alerts.storing.set()
    await reading
    assert len(alerts.crossings) == 2


async def test_what_ails_the_engine_ends_the_sample() -> None:
    engine = FakeEngine()
    engine.faults.dead = True
    with pytest.raises(ActserveError) as raised:
        await watch(engine, run_of(), [at(P, Stop())])
    assert raised.value.reason is Reason.ENGINE_DEAD


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("position", [0, P - 1, P, P + 5])
async def test_a_score_that_is_not_finite_withholds_the_answer(acts: bool, position: int) -> None:
    values = np.full((1, 32), 3e38, np.float32)
    action = Stop() if acts else None
    bad = replace(
        watcher(level(NEVER, action), selection=from_(position)),
        network=ProbeNetwork(SITES, values),
    )
    with pytest.raises(ActserveError) as raised:
        await watch(FakeEngine(), run_of(), [watcher(level(NEVER), name="good"), bad])
    assert raised.value.reason is Reason.MONITOR_INCOMPLETE
    assert raised.value.metadata == {"resource_name": bad.monitor, "position": str(position)}


async def test_a_score_of_what_is_no_longer_of_the_sample_need_not_be_finite() -> None:
    values = np.full((1, 32), 3e38, np.float32)
    bad = watcher(level(NEVER), selection=from_(P + 3), name="bad")
    bad = replace(bad, network=ProbeNetwork(SITES, values))
    engine = Ahead(rows_per_event=100)
    found = await watch(engine, run_of(), [at(P + 2, Stop()), bad])
    assert found.finished.ended_by == "models/fake/monitors/m"
    for position, action in ((P + 3, Stop()), (P + 2, Intervene((add(2),))), (P + 2, PAUSE)):
        with pytest.raises(ActserveError) as raised:
            await watch(engine, run_of(), [at(position, action), bad])
        assert raised.value.metadata["position"] == str(P + 3)


class Losing(FakeEngine):
    """Loses the row of one position, of the last capture."""

    def __init__(self, position: int) -> None:
        super().__init__(rows_per_event=4)
        self._position = position

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(super().run(run)) as events:
            async for event in events:
                if isinstance(event, Rows) and event.capture_index == len(run.captures) - 1:
                    kept = event.positions != self._position
                    if not kept.any():
                        continue
                    event = replace(event, positions=event.positions[kept], bits=event.bits[kept])
                yield event


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("position", [0, 3, P - 1, P, P + 5, P + TOKENS - 2, P + TOKENS - 1])
async def test_a_row_that_is_missing_withholds_the_answer(acts: bool, position: int) -> None:
    each = watcher(level(NEVER, Stop() if acts else None))
    last = position == P + TOKENS - 1
    if last and not acts:
        await watch(Losing(position), run_of(captures=OWN), [each])
        return
    with pytest.raises(ActserveError) as raised:
        await watch(Losing(position), run_of(captures=OWN), [each])
    assert raised.value.reason is Reason.MONITOR_INCOMPLETE
    assert raised.value.metadata["position"] == str(position)


async def test_a_run_that_goes_on_with_other_tokens_is_no_answer() -> None:
    class Forgetful(FakeEngine):
        def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
            return super().run(replace(run, replayed=()))

    run = run_of(Sampling(max_tokens=TOKENS))  # Without a seed.
    with pytest.raises(ActserveError) as raised:
        await watch(Forgetful(), run, [at(P + 6, PAUSE)])
    assert raised.value.reason is Reason.INTERNAL


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=3, max_tokens=300, stop=("a", "bb")),
        Sampling(seed=3, max_tokens=300, stop=("a",), include_stop=True),
        Sampling(seed=4, max_tokens=300, stop_token_ids=tuple(range(60, 70))),
    ],
)
async def test_the_last_token_may_be_what_ends_the_text(
    engine: FakeEngine, sampling: Sampling
) -> None:
    run = run_of(sampling)
    wanted = await plain(engine, run)
    last = P + len(wanted.ids) - 1
    for action in (PAUSE, Intervene((add(2),)), Stop()):
        found = await watch(engine, run, [at(last, action)])
        assert (found.ids, found.text) == (wanted.ids, wanted.text)
        assert found.end[1:4] == wanted.end[1:4]
        if isinstance(action, Stop):
            assert found.finished.reason is FinishReason.MONITOR
        else:
            assert found.end == wanted.end
    for position in range(P, last):
        found = await watch(engine, run, [at(position, PAUSE)])
        assert (found.ids, found.text, found.end) == (wanted.ids, wanted.text, wanted.end)
