"""Watches samples of the fake engine, and says what came of it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actserve_server.domain.operations import Add
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork, ProbeOutputs
from actserve_server.domain.probes import EACH_TOKEN, Aggregator
from actserve_server.domain.runs import (
    Capture,
    Finished,
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
    Crossing,
    Decision,
    Intervene,
    Level,
    LevelName,
    Pause,
    Stop,
    WatchedCall,
    WatchedFinished,
    Watcher,
)
from actserve_server.monitors.watching import Flagged, Runner, Sample, watched

SITES = (Site(HookPoint.RESID_POST, 1), Site(HookPoint.MLP_OUT, 2))
PROMPT = tuple(b"The river ran past")
CALL = WatchedCall(tenant="", model_id="fake", call_id="call")
ALL = Selection(Spans(((0, NO_END),)))

GREEDY = Sampling(temperature=0.0, max_tokens=10, logprobs=2)
SEEDED = Sampling(seed=5, max_tokens=10, logprobs=1, frequency_penalty=1.0, stop=("zzz",))


def network(seed: int = 0, *, attends: bool = False) -> ProbeNetwork:
    values, queries = np.random.default_rng(seed).standard_normal((2, 2, 32)).astype(np.float32)
    if attends:
        return ProbeNetwork(SITES, values, queries=queries, bias=0.25)
    return ProbeNetwork(SITES, values[:1], bias=0.25)


def from_(start: int) -> Selection:
    return Selection(Spans(((start, NO_END),)))


def add(seed: int = 9, selection: Selection = ALL) -> Intervention:
    vector = np.random.default_rng(seed).standard_normal(16).astype(np.float32)
    return Intervention((SITES[0],), selection, Add(vector, 2.0), allow_unused=True)


def watcher(
    *levels: Level,
    selection: Selection = ALL,
    aggregator: Aggregator = EACH_TOKEN,
    seed: int = 0,
    name: str = "m",
    attends: bool = False,
) -> Watcher:
    return Watcher(
        monitor=f"models/fake/monitors/{name}",
        etag="1",
        network=network(seed, attends=attends),
        aggregator=aggregator,
        selection=selection,
        levels=levels,
    )


def level(
    threshold: float,
    action: Stop | Intervene | Pause | None = None,
    name: LevelName = LevelName.UPPER,
    *,
    flag: bool = False,
) -> Level:
    return Level(name, threshold, action, flag)


ALWAYS = -1e9
NEVER = 1e9
"""Thresholds."""


@dataclass
class Noted:
    """Alerts that keep what they are told, and decide as they are told."""

    crossings: list[Crossing] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    """Of the pauses, in order; without any left they go on."""
    error: Exception | None = None
    storing: asyncio.Event | None = None
    """What storing waits for."""
    deciding: asyncio.Event | None = None
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    has_stored: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    cancelled: int = 0
    lapsing: list[asyncio.Future[str]] = field(default_factory=list)

    async def raised(self, call: WatchedCall, crossing: Crossing) -> str:
        assert call is CALL
        await (self.storing.wait() if self.storing else asyncio.sleep(0))
        if self.error:
            raise self.error
        self.crossings.append(crossing)
        self.has_stored.set()
        return f"alert {len(self.crossings)}"

    async def decision(self, call: WatchedCall, alert: str, pause: Pause) -> Decision:
        assert alert.startswith("alert ")
        self.asked += 1
        self.was_asked.set()
        try:
            await (self.deciding.wait() if self.deciding else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.decisions.pop(0) if self.decisions else Decision.PROCEED

    def lapsed(self, call: WatchedCall, alert: Awaitable[str]) -> None:
        assert call is CALL
        self.lapsing.append(asyncio.ensure_future(alert))

    @property
    def raised_at(self) -> list[tuple[str, int, int]]:
        """The last part of the monitor's name, the level and the position, sorted."""
        return sorted(
            (each.watcher.monitor.rpartition("/")[2], int(each.level.name), each.position)
            for each in self.crossings
        )


@dataclass
class Told:
    """All that a sample has told."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    rows: dict[tuple[int, int], list[tuple[int, bytes]]] = field(default_factory=dict)
    flagged: list[Crossing] = field(default_factory=list)
    finished: Any = None

    @property
    def end(self) -> tuple[Any, ...]:
        """Why it ended, and what it says of captures and interventions."""
        done = self.finished
        return (
            done.reason,
            done.output_tokens,
            [each.tolist() for each in done.captured_positions],
            done.interventions,
            done.stopped_by,
        )


async def told(
    events: Any, prompt_tokens: int = len(PROMPT), seen: list[Any] | None = None
) -> Told:
    """`seen` is given each event as it comes."""
    found, seen = Told(), [] if seen is None else seen
    async with aclosing(events):
        async for event in events:
            seen.append(event)
            match event:
                case Tokens():
                    assert event.position == prompt_tokens + len(found.ids)
                    found.ids += event.ids
                    found.text += event.text
                    found.logprobs += event.logprobs
                case Rows():
                    key = event.capture_index, event.site_index
                    rows = zip(event.positions.tolist(), event.bits, strict=True)
                    found.rows.setdefault(key, []).extend((p, row.tobytes()) for p, row in rows)
                case Flagged():
                    found.flagged.append(event.crossing)
                case _:
                    assert found.finished is None
                    found.finished = event
    return found


def run_of(sampling: Sampling = GREEDY, **fields: Any) -> Run:
    return Run(id=fields.pop("id", "r"), token_ids=PROMPT, sampling=sampling, **fields)


async def watch(
    engine: Runner,
    run: Run,
    watchers: Sequence[Watcher],
    alerts: Noted | None = None,
    **fields: Any,
) -> Told:
    sample = Sample(run=run, index=0, call=CALL, watchers=watchers, **fields)
    found = await told(watched(engine, alerts or Noted(), sample))
    assert isinstance(found.finished, WatchedFinished)
    return found


class Ahead(FakeEngine):
    """Runs ahead of what it tells, as vLLM does: several tokens come together, and after them the
    rows of the last ones."""

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        tokens: list[Tokens] = []
        rows: list[Rows] = []
        async with aclosing(super().run(run)) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    tokens.append(event)
                elif isinstance(event, Rows):
                    rows.append(event)
                if len(tokens) == TOGETHER or isinstance(event, Finished):
                    if tokens:
                        yield _joined(tokens)
                    for each in _rows_joined(rows):
                        yield each
                    tokens, rows = [], []
                if isinstance(event, Finished):
                    yield event


TOGETHER = 4
"""Tokens that come in one event."""


def _joined(tokens: Sequence[Tokens]) -> Tokens:
    return Tokens(
        tokens[0].position,
        tuple(token for each in tokens for token in each.ids),
        tuple(text for each in tokens for text in each.texts),
        "".join(each.text for each in tokens),
        tuple(logprobs for each in tokens for logprobs in each.logprobs),
    )


def _rows_joined(rows: Sequence[Rows]) -> list[Rows]:
    """One for each site of each capture, in that order."""
    by_site: dict[tuple[int, int], list[Rows]] = {}
    for each in rows:
        by_site.setdefault((each.capture_index, each.site_index), []).append(each)
    return [
        Rows(
            *key,
            np.concatenate([each.positions for each in of_site]),
            np.concatenate([each.bits for each in of_site]),
        )
        for key, of_site in sorted(by_site.items())
    ]


async def outputs(engine: FakeEngine, run: Run, each: ProbeNetwork) -> np.ndarray:
    """What a network makes of every token of a run, the last one included: float32 [n, outputs]."""
    plain = await told(engine.run(replace(run, id="plain")), len(run.token_ids))
    captured = ProbeOutputs((each,))
    again = Run(
        id="outputs",
        token_ids=(*run.token_ids, *plain.ids),
        captures=(Capture(captured.sites, ALL, captured),),
        interventions=run.interventions,
    )
    rows = (await told(engine.run(again), len(again.token_ids))).rows[0, 0]
    return np.stack([np.frombuffer(row, np.float32) for _, row in rows])
