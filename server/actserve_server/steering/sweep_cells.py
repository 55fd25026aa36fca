"""One cell of a sweep: the runs that it takes, and what comes of them.

At most one run samples, or is of the prompt alone; one run for each answer is told its tokens; and
one run without any change reads what was generated. All but the last are in line at once, together
with those of other cells, and no more of the whole sweep than may run at once.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import (
    Capture,
    Finished,
    FinishReason,
    Intervention,
    InterventionReport,
    Rows,
    Run,
    Sampling,
    Tokens,
    Unembed,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.steering.repetition import repetition
from actserve_server.steering.sweep_scores import Scores, Scoring

T = TypeVar("T")

PREDICTING = Site(HookPoint.FINAL_NORM)
"""Where log probabilities are read."""
QUICK_NUMBERS = 256
"""To aggregate: more take longer than the way to a thread and back, some 50 us."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Change:
    """An intervention of a cell, in the parts that a run has of it."""

    parts: tuple[Intervention, ...]
    allow_unused: bool
    dose_factor: float | None = None
    """As its report tells it."""
    field: FieldPath


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CellRequest:
    """A cell that has been checked and can run."""

    prompt_ids: tuple[int, ...]
    changes: tuple[Change, ...]
    sampling: Sampling
    """Of one token, which is dropped, if cells do not sample."""
    adapter: str = ""
    """The id of the LoRA adapter that it runs with, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every cell of a sweep is asked."""

    answers: tuple[tuple[int, ...], ...]
    """Token ids, at least one each."""
    scores: Scores
    perplexity: bool
    samples: bool
    """Whether cells sample; of those that do not, prompts run alone where they are scored."""

    @property
    def changed_runs(self) -> int:
        """With the interventions of a cell."""
        return len(self.answers) + (self.samples or len(self.scores) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What came of a cell."""

    text: str = ""
    reason: FinishReason | None = None
    """None if nothing was generated."""
    answer_logprobs: tuple[float, ...] = ()
    score_values: tuple[float, ...] = ()
    perplexity: float | None = None
    repetition: float | None = None
    interventions: tuple[InterventionReport, ...] = ()
    """One for each of the cell, over all its runs."""


class Consumed(Protocol):
    """Where it is counted what a call has consumed."""

    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, eq=False)
class _Done:
    """A run that is over."""

    ids: list[int] = field(default_factory=list)
    """Generated."""
    ran: Sequence[int] = ()
    """All tokens that were run: the last that was generated is not."""
    text: str = ""
    reason: FinishReason | None = None
    rows: list[list[np.ndarray]] = field(default_factory=list)
    """By capture; float32 [rows, width] each."""
    reports: tuple[InterventionReport, ...] = ()


class Cells:
    """Runs cells of one sweep, any number at once."""

    def __init__(
        self,
        engine: AdmittedEngine,
        admitted: AdmittedCall,
        asked: Asked,
        tenant: str,
        call_id: str,
        consumed: Consumed,
    ) -> None:
        self._engine = engine
        self._admitted = admitted
        self._asked = asked
        self._tenant = tenant
        self._call_id = call_id
        self._consumed = consumed
        self._in_line = asyncio.Semaphore(admitted.max_running)

    async def run(self, number: int, cell: CellRequest) -> CellResult:
        """What comes of cell `number`. Raises what ends one of its runs, and ends the others."""
        changes = tuple(
            replace(part, allow_unused=True) for each in cell.changes for part in each.parts
        )
        name, scoring = f"{self._call_id}-{number}", self._asked.scores.start()
        answers = [
            self._logprob(f"{name}-answer{index}", cell.prompt_ids, answer, changes, cell.adapter)
            for index, answer in enumerate(self._asked.answers)
        ]
        try:
            found: list[Any] = await _together(
                [self._sampled(name, cell, changes, scoring), *answers]
            )
            sampled: _Done | None = found[0]
            answered: list[tuple[float, _Done]] = found[1:]
            runs = [done for done in (sampled, *(done for _, done in answered)) if done]
            merged = _merged(cell.changes, runs)
            generated = sampled if self._asked.samples else None
            perplexity = None
            if generated and self._asked.perplexity:
                perplexity = await self._perplexity(name, cell.prompt_ids, generated.ids)
        except ActserveError as error:
            _name_change(error, cell.changes)
            raise
        return CellResult(
            text=generated.text if generated else "",
            reason=generated.reason if generated else None,
            answer_logprobs=tuple(logprob for logprob, _ in answered),
            score_values=scoring.values,
            perplexity=perplexity,
            repetition=repetition(generated.ids) if generated else None,
            interventions=merged,
        )

    async def _sampled(
        self, name: str, cell: CellRequest, changes: tuple[Intervention, ...], scoring: Scoring
    ) -> _Done | None:
        """The run that is scored, which samples if the cell does. None if it would tell nothing."""
        if not self._asked.samples and not self._asked.scores:
            return None
        run = Run(
            id=name,
            token_ids=cell.prompt_ids,
            sampling=cell.sampling,
            captures=self._asked.scores.captures,
            interventions=changes,
            adapter=cell.adapter,
            tenant=self._tenant,
        )
        return await self._run(run, scoring, samples=self._asked.samples)

    async def _perplexity(
        self, name: str, prompt: tuple[int, ...], generated: Sequence[int]
    ) -> float:
        logprob, _ = await self._logprob(f"{name}-plain", prompt, tuple(generated), ())
        with np.errstate(over="ignore"):
            return float(np.exp(-logprob / len(generated)))

    async def _logprob(
        self,
        run_id: str,
        prompt: tuple[int, ...],
        tokens: tuple[int, ...],
        changes: tuple[Intervention, ...],
        adapter: str = "",
    ) -> tuple[float, _Done]:
        """The natural log of the probability that these tokens come next. All but the last are run,
        after the prompt; each is predicted at the position before its own."""
        *before, last = tokens
        first, end = len(prompt) - 1, len(prompt) - 1 + len(before)
        captures = [_predicting(end, end + 1, Unembed(token_ids=(last,)))]
        if before:
            captures.append(_predicting(first, end, Unembed(next_token=True)))
        run = Run(
            id=run_id,
            token_ids=(*prompt, *before),
            captures=tuple(captures),
            interventions=changes,
            adapter=adapter,
            tenant=self._tenant,
        )
        done = await self._run(run)
        return sum(float(rows.sum(dtype=np.float64)) for each in done.rows for rows in each), done

    async def _run(
        self, run: Run, scoring: Scoring | None = None, *, samples: bool = False
    ) -> _Done:
        """What came of a run. The numbers that it projects go to `scoring`, if there is one.
        `samples` says that its tokens are an output, and not dropped."""
        self._engine.check(run, 0)
        done = _Done(rows=[[] for _ in run.captures])
        async with self._in_line, self._admitted.started(run) as events:
            self._consumed.prompt_tokens += len(run.token_ids)
            async for event in events:
                match event:
                    case Tokens():
                        done.ids += event.ids
                        # As they come: a cell that is cancelled has consumed them too.
                        self._consumed.output_tokens += len(event.ids) if samples else 0
                        done.text += event.text
                    case Rows() if scoring is not None and event.bits.size > QUICK_NUMBERS:
                        await off_loop(scoring.add, event)
                    case Rows() if scoring is not None:
                        scoring.add(event)
                    case Rows():
                        done.rows[event.capture_index].append(event.bits)
                    case Finished():
                        done.reason = event.reason
                        done.ran = (*run.token_ids, *done.ids[:-1])
                        done.reports = event.interventions
        return done


def _predicting(start: int, end: int, unembed: Unembed) -> Capture:
    return Capture((PREDICTING,), Selection(Spans(((start, end),))), unembed)


def _merged(changes: Sequence[Change], runs: Sequence[_Done]) -> tuple[InterventionReport, ...]:
    """A report for each change, over all runs. Raises INTERVENTION_UNUSED for one that selects no
    token of any run although it may not go unused."""
    merged, start = [], 0
    for change in changes:
        end = start + len(change.parts)
        told = InterventionReport.merged([each for run in runs for each in run.reports[start:end]])
        merged.append(replace(told, dose_factor=change.dose_factor))
        selection = change.parts[0].selection
        if not change.allow_unused and not any(len(selection.among(run.ran)) for run in runs):
            raise ActserveError(
                Reason.INTERVENTION_UNUSED,
                "the intervention changed no row of the cell: no token that it selects was run; "
                "select others, generate more, or set allow_unused",
                field=change.field,
            )
        start = end
    return tuple(merged)


def _name_change(error: ActserveError, changes: Sequence[Change]) -> None:
    """Has an error about an intervention of a run name the one of the request."""
    match error.field:
        case ("interventions", int(number), *rest):
            sent = [change for change in changes for _ in change.parts][number]
            error.field = (*sent.field, *rest)
        case ("interventions",) if changes:
            error.field = changes[0].field[:-1]
        case ("readouts", *_):
            error.field = ("scores",)


async def _together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all give; the first error ends the others."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
