"""Watches one sample while it runs: scores its tokens, raises alerts, and does what monitors say.

Where something may be done because of a token, the token is told once its own row was scored. The
engine runs ahead of that; what it has run too much of is never told. To go on in another way, a
sample is run again from its prompt, with the tokens that it keeps replayed (`Run.replayed`), which
leaves sampler and text in the state in which they were.

See docs/design/monitors.md.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Operation, Replace
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import (
    GREEDY_ONE_TOKEN,
    Finished,
    FinishReason,
    Intervention,
    InterventionReport,
    Rows,
    Run,
    RunEvent,
    Tokens,
)
from actserve_server.monitors import measures
from actserve_server.monitors.sample_scores import Reached, SampleScores
from actserve_server.monitors.watched import (
    Alerts,
    Crossing,
    Decision,
    Intervene,
    Intervened,
    LevelName,
    Pause,
    Stop,
    WatchedCall,
    WatchedFinished,
    Watcher,
)
from actserve_server.monitors.withheld import Withheld

LATER_TEXT_TOKENS = 16
"""After the token of an alert that holds text, where they are known."""

_storing: set[asyncio.Task[str]] = set()
"""Alerts that are being stored: that goes on when the call that is watched has ended."""


class Runner(Protocol):
    """What runs samples: an engine, or a call that it has let in."""

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]: ...

    def ended_text(self, run: Run, generated: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Flagged:
    """A level was reached, of which the call is told."""

    crossing: Crossing


WatchedEvent = RunEvent | Flagged


@dataclass(frozen=True, slots=True, eq=False)
class _SwitchedOn:
    """The interventions of a level, from a position on."""

    reached: Reached
    first_position: int
    changes: tuple[Intervention | None, ...]
    """Each of the level's; None for one that selects nothing there."""

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Those that have something to change."""
        return tuple(each for each in self.changes if each is not None)

    def intervened(self, reports: Iterator[InterventionReport]) -> Intervened:
        """What they did, by the next reports of a run: one for each that has something to
        change."""
        return Intervened(
            self.reached.watcher.monitor,
            self.reached.level.name,
            self.first_position,
            tuple(_NO_ROWS if each is None else next(reports) for each in self.changes),
        )


_NO_ROWS = InterventionReport(0, 0, 0, None)


def _told_nobody(monitor: str, level: LevelName) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is watched."""

    run: Run
    index: int
    """Which sample of its call."""
    call: WatchedCall
    watchers: Sequence[Watcher]
    each_token: bool = False
    """Whether the score as of each token is told."""
    prompt_texts: Sequence[str] = ()
    """Each token decoded alone."""
    text_tokens: int = 0
    """Up to the token of an alert, that it holds the text of, and then of some after it; none if
    zero."""
    switched_on: Callable[[str, LevelName], None] = _told_nobody
    """Told the monitor and the level whose interventions the sample goes on with, as it does: a
    sample that is cancelled never comes to say what they did."""

    @property
    def largest(self) -> Run:
        """What its runs may come to hold at most, all monitors having acted."""
        scores = SampleScores(self.watchers)
        actions = [level.action for each in self.watchers for level in each.levels]
        late = [action for action in actions if isinstance(action, Intervene)]
        switched_on = (each for action in late for each in action.interventions)
        return replace(
            self.run,
            captures=(*self.run.captures, *scores.captures),
            interventions=(*self.run.interventions, *switched_on),
        )


async def watched(
    runner: Runner, alerts: Alerts, sample: Sample
) -> AsyncGenerator[WatchedEvent, None]:
    """The events of a sample, and last `WatchedFinished`. Closing it ends all that is done for it,
    but for alerts that are being stored. Raises MONITOR_INCOMPLETE, STORE_UNREACHABLE, or what the
    engine does."""
    watching = _Watching(runner, alerts, sample)
    try:
        async with aclosing(watching.events()) as events:
            async for event in events:
                if isinstance(event, WatchedFinished):
                    measures.sample_ended(event.scores, sample.call.tenant)
                yield event
    except ActserveError as error:
        match error.field:
            case ("interventions", int(number), *_) if number >= len(sample.run.interventions):
                error.field = ()  # One of a monitor, which the call has not sent.
        raise
    finally:
        watching.lapse()
        watching.measure()


class _Watching:
    def __init__(self, runner: Runner, alerts: Alerts, sample: Sample) -> None:
        self._runner, self._alerts, self._sample = runner, alerts, sample
        self._scores = SampleScores(sample.watchers, each_token=sample.each_token)
        self._prompt_tokens = len(sample.run.token_ids)
        self._withheld = Withheld(self._prompt_tokens) if self._scores.may_act else None
        """None if nothing waits, and nothing is ever run again."""
        self._flagged: list[Flagged] = []
        """Not told yet."""
        self._stored: dict[Reached, asyncio.Task[str]] = {}
        self._undecided: set[Reached] = set()
        """Pauses, about which nobody has decided."""
        self._switched_on: tuple[_SwitchedOn, ...] = ()
        """In the order in which they were."""
        self._runs = 0
        self._seconds = 0.0
        """Spent on scores."""
        # Of the run in progress.
        self._ids = [*sample.run.token_ids]
        self._texts: list[str] = []
        self._replayed: tuple[int, ...] = ()
        self._finished: Finished | None = None

    async def events(self) -> AsyncGenerator[WatchedEvent, None]:
        captures = (*self._sample.run.captures, *self._scores.captures)
        # A token that waits for its row waits for no others.
        at_once = self._sample.run.rows_at_once or self._scores.may_act
        run = replace(self._sample.run, captures=captures, rows_at_once=at_once)
        while True:
            acting: list[Reached] = []
            async with aclosing(self._runner.run(run)) as events:
                async for event in events:
                    if told := self._take(event):
                        yield told
                    if self._scores.waits:
                        acting = await self._score()
                    if self._flagged or self._withheld:
                        for each in self._told(acting):
                            yield each
                    if acting:
                        break
            while acting or (acting := await self._score_last()):
                position = acting[0].position
                stopped_by = await self._decided(acting)
                self.lapse()
                if stopped_by:
                    async for each in self._stop(position, stopped_by):
                        yield each
                    return
                more = self._to_switch_on(acting)
                if self._finished is None or (more and position + 1 < len(self._ids)):
                    break
                # The run is over, and what it gave stands.
                acting = await self._score()
                for each in self._told(acting):
                    yield each
            else:
                async for each in self._end():
                    yield each
                return
            run = self._again(run, position, more)

    def measure(self) -> None:
        """Tells Prometheus what was scored."""
        measures.tokens_scored(self._scores.scores(), self._seconds, self._sample.call.tenant)

    def lapse(self) -> None:
        """Waits for no decision any more that there is not."""
        for each in self._undecided:
            self._alerts.lapsed(self._sample.call, asyncio.shield(self._stored[each]))
        self._undecided.clear()

    def _take(self, event: RunEvent) -> WatchedEvent | None:
        """Takes an event of the run. Returns it if it may be told at once."""
        match event:
            case Tokens():
                self._check_replayed(event.ids)
                self._ids += event.ids
                self._texts += event.texts
            case Rows() if event.capture_index >= self._own_captures:
                self._scores.add(event.capture_index - self._own_captures, event, self._ids)
                return None
            case Finished():
                self._finished = event
                return None
        if self._withheld is None:
            return event
        self._withheld.add(event)
        return None

    async def _score(self) -> list[Reached]:
        """Scores what has come, as far as it goes. Returns what is to be acted on, all of one
        token."""
        # In order over all monitors while one may still act.
        end = self._scores.ready(self._ids) if self._scores.may_act else None
        started = time.perf_counter()
        reached = await self._scores.score_aside(end)
        self._seconds += time.perf_counter() - started
        for each in reached:
            self._raise(each)
        return [each for each in reached if each.level.action is not None]

    def _told(self, acting: Sequence[Reached]) -> Iterator[WatchedEvent]:
        """What may be told now."""
        flagged, self._flagged = self._flagged, []
        if self._withheld and not acting:
            waits = self._scores.may_act
            yield from self._withheld.release(self._scores.ready(self._ids) if waits else NO_END)
        yield from flagged

    async def _score_last(self) -> list[Reached]:
        """Scores the last token of a run that is over, where something may be done because of it:
        it was sampled and not run."""
        position = len(self._ids) - 1
        if self._finished is None or not self._scores.acts_at(position, self._ids[-1]):
            return []
        captures = self._scores.captures_at(position, self._ids[-1])
        run = replace(self._sequence(len(self._ids)), captures=tuple(captures.values()))
        numbers = [*captures]
        async with aclosing(self._runner.run(run)) as events:
            async for event in events:
                if isinstance(event, Rows):
                    self._scores.add(numbers[event.capture_index], event, self._ids)
        self._scores.check(self._ids)
        return await self._score()

    def _raise(self, reached: Reached) -> None:
        end = reached.position + 1
        crossing = Crossing(
            watcher=reached.watcher,
            level=reached.level,
            score=reached.score,
            position=reached.position,
            sample_index=self._sample.index,
            text=self._text(end),
            sequence=self._sequence(end),
        )
        if reached.level.flag:
            self._flagged.append(Flagged(crossing))
        storing = asyncio.ensure_future(self._alerts.raised(self._sample.call, crossing))
        self._stored[reached] = storing
        if isinstance(reached.level.action, Pause):
            self._undecided.add(reached)
        _storing.add(storing)
        storing.add_done_callback(_over)

    async def _decided(self, acting: Sequence[Reached]) -> Watcher | None:
        """Who ends the sample, if anybody does, now or after a pause."""
        chosen = _chosen(acting)
        for each in chosen:
            if isinstance(each.level.action, Stop):
                return each.watcher
        paused = [each for each in chosen if isinstance(each.level.action, Pause)]
        deciding = [asyncio.ensure_future(self._decision(each)) for each in paused]
        try:
            for each, decision in zip(paused, deciding, strict=True):
                if await decision is not Decision.PROCEED:
                    return each.watcher
        finally:
            for decision in deciding:
                decision.cancel()
            await asyncio.gather(*deciding, return_exceptions=True)
        return None

    async def _decision(self, reached: Reached) -> Decision:
        pause = reached.level.action
        assert isinstance(pause, Pause)
        alert = await asyncio.shield(self._stored[reached])
        decision = await self._alerts.decision(self._sample.call, alert, pause)
        self._undecided.discard(reached)
        return decision

    def _to_switch_on(self, acting: Sequence[Reached]) -> tuple[_SwitchedOn, ...]:
        """What is to be changed from now on: generated tokens after that one."""
        start = max(acting[0].position + 1, self._prompt_tokens)
        more = []
        for each in _chosen(acting):
            if isinstance(each.level.action, Intervene):
                changes = [_from(change, start) for change in each.level.action.interventions]
                more.append(_SwitchedOn(each, start, tuple(changes)))
        return tuple(each for each in more if each.interventions)

    def _again(self, run: Run, position: int, more: tuple[_SwitchedOn, ...]) -> Run:
        """The run that goes on after a position. The token after it was sampled from a row that is
        as it was, so it stays; those after that one do if nothing changes."""
        kept = position + 2 if more else len(self._ids)
        self._replayed = tuple(self._ids[self._prompt_tokens : kept])
        self._ids = [*self._sample.run.token_ids]
        self._texts, self._finished = [], None
        self._switched_on += more
        for each in more:
            self._sample.switched_on(each.reached.watcher.monitor, each.reached.level.name)
        self._scores.go_back()
        assert self._withheld is not None
        self._withheld.go_back()
        return replace(
            run, id=self._new_id(), replayed=self._replayed, interventions=self._interventions
        )

    async def _end(self) -> AsyncGenerator[WatchedEvent, None]:
        finished = self._finished
        if finished is None:
            raise ActserveError(Reason.INTERNAL, "the engine ended a run without saying so")
        self._scores.check(self._ids[:-1])
        if self._withheld:
            for each in self._withheld.release_all(len(self._ids) - 1):
                yield each
        for each in self._told(()):
            yield each
        yield await self._ended(finished)

    async def _stop(self, position: int, stopped_by: Watcher) -> AsyncGenerator[WatchedEvent, None]:
        """Ends the sample after a position, or before its first token if that is in the prompt."""
        assert self._withheld is not None
        end, finished = max(position + 1, self._prompt_tokens), self._finished
        if finished is not None and end == len(self._ids):
            for each in self._withheld.release_all(end - 1):
                yield each
        else:
            generated = self._ids[self._prompt_tokens : end]
            text = self._runner.ended_text(self._sample.run, generated) if generated else ""
            for each in self._withheld.cut(end, text):
                yield each
            finished = Finished(
                FinishReason.MONITOR,
                len(generated),
                self._captured(end),
                await self._reports(max(end - 1, self._prompt_tokens)),
            )
        for each in self._flagged:
            yield each
        yield await self._ended(finished, stopped_by)

    async def _ended(
        self, finished: Finished, stopped_by: Watcher | None = None
    ) -> WatchedFinished:
        if self._stored:
            await asyncio.shield(asyncio.gather(*self._stored.values()))
        own = len(self._sample.run.interventions)
        others = iter(finished.interventions[own:])
        return WatchedFinished(
            FinishReason.MONITOR if stopped_by else finished.reason,
            finished.output_tokens,
            finished.captured_positions[: self._own_captures],
            finished.interventions[:own],
            None if stopped_by else finished.stopped_by,
            stopped_by.monitor if stopped_by else None,
            self._scores.scores(),
            tuple(each.intervened(others) for each in self._switched_on),
        )

    def _captured(self, end: int) -> tuple[np.ndarray, ...]:
        """Where the call's own captures have read of a sample that is ended before a position."""
        assert self._withheld is not None
        told = self._ids[: end - 1] if end > self._prompt_tokens else []
        positions = []
        for number, capture in enumerate(self._sample.run.captures):
            selected = capture.selection.among(told)
            if (
                len(selected)
                and self._withheld.rows_told(number, len(capture.sites)) <= selected[-1]
            ):
                raise ActserveError(
                    Reason.CAPTURE_INCOMPLETE,
                    f"the row at position {int(selected[-1])} had not come when a monitor ended "
                    "the sample; the answer is withheld, try again",
                )
            positions.append(selected)
        return tuple(positions)

    async def _reports(self, tokens: int) -> tuple[InterventionReport, ...]:
        """What interventions did to the first tokens of a sample whose run was ended before it
        could say so: of a run of these tokens, most of which are in the prefix cache."""
        if not self._interventions:
            return ()
        async with aclosing(self._runner.run(self._sequence(tokens))) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return event.interventions
        raise ActserveError(Reason.INTERNAL, "the engine ended a run without saying so")

    def _sequence(self, tokens: int) -> Run:
        """Runs so many tokens of the sample again, changed as they were."""
        return Run(
            id=self._new_id(),
            token_ids=tuple(self._ids[:tokens]),
            sampling=GREEDY_ONE_TOKEN,
            interventions=tuple(replace(each, allow_unused=True) for each in self._interventions),
            placements=self._sample.run.placements,
            adapter=self._sample.run.adapter,
            tenant=self._sample.run.tenant,
        )

    def _new_id(self) -> str:
        self._runs += 1
        return f"{self._sample.run.id}.{self._runs}"

    def _text(self, end: int) -> str:
        if not (before := self._sample.text_tokens):
            return ""
        texts = [*self._sample.prompt_texts, *self._texts]
        return "".join(texts[max(0, end - before) : end + LATER_TEXT_TOKENS])

    def _check_replayed(self, new: Sequence[int]) -> None:
        """Looks at the next tokens alone, since all may be tens of thousands."""
        start = len(self._ids) - self._prompt_tokens
        kept = self._replayed[start : start + len(new)]
        if tuple(new[: len(kept)]) != kept:
            raise ActserveError(
                Reason.INTERNAL, "the engine did not replay the tokens of a sample that goes on"
            )

    @property
    def _interventions(self) -> tuple[Intervention, ...]:
        """The sample's own, and what was switched on."""
        late = (change for each in self._switched_on for change in each.interventions)
        return (*self._sample.run.interventions, *late)

    @property
    def _own_captures(self) -> int:
        return len(self._sample.run.captures)


def _chosen(acting: Sequence[Reached]) -> list[Reached]:
    """Of levels that one token has reached, for each monitor the highest."""
    return [*{each.watcher: each for each in sorted(acting, key=lambda r: r.level.name)}.values()]


def _from(change: Intervention, start: int) -> Intervention | None:
    """The same at positions from `start` on, if it selects any there, where it may have nothing to
    do."""
    spans, ids = change.selection.spans, change.selection.token_ids
    ranges = tuple((max(low, start), high) for low, high in spans.ranges if high > start)
    if not ranges:
        return None
    operation: Operation = change.operation
    if isinstance(operation, Replace) and len(operation.rows) > 1:
        # One for each selected position.
        operation = Replace(operation.rows[spans.count(start) :])
    selection = Selection(Spans(ranges), ids)
    return replace(change, selection=selection, operation=operation, allow_unused=True)


def _over(storing: "asyncio.Future[str]") -> None:
    _storing.discard(storing)  # type: ignore[arg-type]
    if not storing.cancelled():
        storing.exception()  # Told where the sample ends, if that still goes on.
