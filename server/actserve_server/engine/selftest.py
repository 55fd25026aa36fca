"""What a server proves to itself before it serves: every tap, in company, does what it does alone.

Two prompts run one at a time and give the rows of every served site, of which must hold what holds
in any decoder (`selftest_checks.py`). Then they run again all at once, beside a run for every
operation at every hook point (`selftest_probes.py`), so that each run shares its batches with
others that capture and change other things. Every row must be the one from alone, changed by
exactly the operation's formula where its run asked for it, and what is changed must move what is
computed from it next. What a run has written itself must be read again, and changed by the next
operation, as exactly as the element type allows.

A wrong row makes those computed after it wrong, so of each run only the first counts. What it shows
to be at fault is withdrawn, and the rest tested again, until nothing fails: a hook point that fails
is not served, one whose changes fail cannot be changed, and both say why.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import (
    GREEDY_ONE_TOKEN,
    Capture,
    Intervention,
    Rows,
    Run,
    Tokens,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest_checks import (
    ACCURACY,
    LOGPROBS,
    Failures,
    SiteRows,
    broken_sums,
    difference,
    factor,
    incomplete,
    inexact,
    misplaced,
    relative_errors,
    repeated,
    wrong_logits,
)
from actserve_server.engine.selftest_probes import (
    CHANGED,
    KNOWN,
    STRONGEST,
    WRITTEN,
    Probe,
    Prompt,
    make_probes,
    served_sites,
    writing,
    written_rows,
)
from actserve_server.engine.selftest_stream import OF_STREAM, last_stream_misses

T = TypeVar("T")

PROMPT_TOKENS = (7, 12)
SHARED_TOKENS = 3
"""With which both prompts begin."""
MORE_THAN_NOISE = 3
"""How many times further from alone than without a change a row must be to count as moved."""
VARIETY = 16
"""Token ids to choose from at least, where there are so many."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The model's description without what failed, and what was found."""

    info: ModelInfo
    failures: Failures
    runs: int
    """How many were compared."""


async def self_test(engine: Engine) -> SelfTest:
    """Probes every served site and operation. Raises `ActserveError` if a run fails as a whole."""
    info, failures = engine.info, {}
    runs = itertools.count()
    while found := await _Round(engine, info, runs).run():
        failures |= {point: failure.reason for point, failure in found.items()}
        info = _without(info, found)
    if info.found_by_structure and (why := await _unproven_stream(engine, info)):
        failures |= dict.fromkeys(OF_STREAM, why)
        info = _without(info, dict.fromkeys(OF_STREAM, _Failure(why, of_changes=False)))
    return SelfTest(info, failures, next(runs))


async def _unproven_stream(engine: Engine, info: ModelInfo) -> str | None:
    """Why a map that was found by structure is not to be believed. One fault is enough, whichever
    hook point shows it."""
    told = engine.info
    for point in OF_STREAM:
        if info.hook_points[point].unserved and not told.hook_points[point].unserved:
            return f"{point} {info.hook_points[point].unserved}"
    prompt, _ = make_prompts(info.vocabulary_size, np.random.default_rng(0))
    return await last_stream_misses(engine, info, prompt)


async def find_failures(engine: Engine, info: ModelInfo, adapter: str = "") -> Failures:
    """What fails at first of the sites that `info` serves, under a LoRA adapter if one is named."""
    found = await _Round(engine, info, itertools.count(), adapter).run()
    return {point: failure.reason for point, failure in found.items()}


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of one run."""

    rows: SiteRows
    logprobs: Mapping[int, float]
    """By token id, of the likeliest to come after the prompt; empty if not asked for."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    of_changes: bool
    """Whether rows can still be captured, if nobody changes them."""


_Found = Mapping[HookPoint, _Failure]


def _without(info: ModelInfo, found: _Found) -> ModelInfo:
    points = dict(info.hook_points)
    for point, failure in found.items():
        why = f"failed the self-test: {failure.reason}"
        withdrawn = {"unchangeable": why} if failure.of_changes else {"unserved": why}
        points[point] = replace(points[point], **withdrawn)
    return replace(info, hook_points=points)


class _Round:
    """One test of what `info` still offers; `runs` counts them over all rounds."""

    def __init__(
        self, engine: Engine, info: ModelInfo, runs: Iterator[int], adapter: str = ""
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._info = info
        self._runs = runs
        self._rng = np.random.default_rng(0)
        self._accuracy = ACCURACY[info.element_type]
        self._sites = served_sites(info)
        self._found: dict[HookPoint, _Failure] = {}

    async def run(self) -> _Found:
        """What fails."""
        if not self._sites:
            return {}
        prompts = make_prompts(self._info.vocabulary_size, self._rng)
        answers = {
            prompt: await self._run(prompt, self._sites, logprobs=self._logprobs)
            for prompt in prompts
        }
        if wrong := self._check_alone(*answers.values()):
            return {point: _Failure(reason, of_changes=False) for point, reason in wrong.items()}
        alone = {prompt: answer.rows for prompt, answer in answers.items()}
        written = written_rows(self._info, alone[prompts[0]], self._rng)
        probes = list(make_probes(self._info, alone, self._rng))
        reread, *found = await together(
            self._rows(prompts[0], [*written], *writing(written)),
            *(self._rows(prompt, self._sites) for prompt in prompts),
            *(self._rows(probe.prompt, probe.sites, *probe.interventions) for probe in probes),
        )
        beside = dict(zip(prompts, found, strict=False))
        tried = list(zip(probes, found[len(prompts) :], strict=True))
        for prompt, rows in beside.items():
            self._judge_plain(alone[prompt], rows)
        # Before changes are blamed for it.
        self._judge_read(written, reread)
        for probe, rows in tried:
            self._judge_probe(probe, alone[probe.prompt], beside[probe.prompt], rows)
        self._judge_written(written, reread)
        # Last, because a known row takes more than the operation at fault: it is written before.
        for probe, rows in tried:
            self._judge_known(probe, rows[probe.site])
        return self._found

    @property
    def _logprobs(self) -> int | None:
        unserved = self._info.hook_points[HookPoint.LOGITS].unserved
        return None if unserved else min(LOGPROBS, self._info.vocabulary_size)

    async def _rows(
        self, prompt: Prompt, sites: Sequence[Site], *changes: Intervention
    ) -> SiteRows:
        return (await self._run(prompt, sites, *changes)).rows

    async def _run(
        self,
        prompt: Prompt,
        sites: Sequence[Site],
        *changes: Intervention,
        logprobs: int | None = None,
    ) -> _Answer:
        """Of rows that did not come, NaN."""
        run = Run(
            id=f"self-test-{next(self._runs)}",
            token_ids=prompt,
            sampling=replace(GREEDY_ONE_TOKEN, logprobs=logprobs),
            captures=(Capture(tuple(sites), Selection(Spans(((0, NO_END),)))),),
            interventions=changes,
            adapter=self._adapter,
            computes_all=True,
        )
        rows = {
            site: np.full((len(prompt), self._info.at(site).width), np.nan, np.float32)
            for site in sites
        }
        likeliest: dict[int, float] = {}
        async with aclosing(self._engine.run(run)) as events:
            async for event in events:
                if isinstance(event, Rows):
                    values = to_float32(event.bits, self._info.element_type)
                    rows[sites[event.site_index]][event.positions] = values
                elif isinstance(event, Tokens):
                    for token in event.logprobs:
                        likeliest |= {each.id: each.logprob for each in token.top}
        return _Answer(rows, likeliest)

    def _check_alone(self, first: _Answer, second: _Answer) -> Failures:
        one, other = first.rows, second.rows
        return (
            {**incomplete(other), **incomplete(one)}
            or {**repeated(other), **misplaced(one, other, SHARED_TOKENS, self._accuracy)}
            # Last, because a sum does not tell which of its sites is wrong.
            or {
                **broken_sums((one, other), self._info.layer_count, self._info.element_type),
                **self._check_logits(first, second),
            }
        )

    def _check_logits(self, *answers: _Answer) -> Failures:
        site = Site(HookPoint.LOGITS)
        told = [answer for answer in answers if answer.logprobs]
        if not told:
            return {}
        captured = [answer.rows[site][-1, [*answer.logprobs]] for answer in told]
        sampled = [np.array([*answer.logprobs.values()]) for answer in told]
        wrong = wrong_logits(captured, sampled, self._info.element_type)
        return {site.hook_point: f"at {site} {wrong}"} if wrong else {}

    def _judge_plain(self, alone: SiteRows, rows: SiteRows) -> None:
        """What other runs change must not show."""
        self._all_as(alone, rows, self._sites, "beside other runs", alone)

    def _judge_probe(self, probe: Probe, alone: SiteRows, plain: SiteRows, rows: SiteRows) -> None:
        """The change is the formula's, at its positions alone, and the model computes with it."""
        wanted = probe.apply(alone[probe.site])
        wanted[KNOWN] = rows[probe.site][KNOWN]
        if (
            self._all_as(alone, rows, probe.before, "beside other runs", alone)
            and self._all_as({probe.site: wanted}, rows, [probe.site], f"after {probe.name}", alone)
            and probe.name == STRONGEST
            and probe.next is not None
            and not self._wrong(plain[probe.next], alone[probe.next], alone[probe.next])
        ):
            self._judge_effect(probe, *(each[probe.next] for each in (alone, plain, rows)))

    def _judge_known(self, probe: Probe, rows: np.ndarray) -> None:
        """Of a row that the run has written itself, the operation makes exactly its formula."""
        wanted = probe.operation.apply(probe.known)
        if wrong := inexact(rows[KNOWN], wanted, probe.known, self._info.element_type):
            self._blame(probe.site, f"after {probe.name}, at {probe.site} a known row is {wrong}")

    def _judge_read(self, written: SiteRows, rows: SiteRows) -> None:
        """Rows are not read as a multiple of what they are."""
        for site, row in written.items():
            found = factor(rows[site][WRITTEN], row, self._info.element_type)
            if found is not None:
                reason = f"at {site} rows are read as {found:.3g} times what was written"
                self._found.setdefault(site.hook_point, _Failure(reason, of_changes=False))

    def _judge_written(self, written: SiteRows, rows: SiteRows) -> None:
        """What is written is read again, at every layer."""
        for site, row in written.items():
            if wrong := inexact(rows[site][WRITTEN], row, row, self._info.element_type):
                self._blame(site, f"at {site} what was written is {wrong}")

    def _judge_effect(
        self, probe: Probe, alone: np.ndarray, plain: np.ndarray, rows: np.ndarray
    ) -> None:
        """What is computed next moves by more than from batch to batch."""
        moved, noise = (relative_errors(each[CHANGED], alone[CHANGED]) for each in (rows, plain))
        if not (moved >= np.maximum(self._accuracy.effect, MORE_THAN_NOISE * noise)).any():
            self._blame(
                probe.site,
                f"after {probe.name} at {probe.site}, {probe.next} moves by {moved.max():.2g} of "
                "its norm, no more than without",
            )

    def _all_as(
        self, wanted: SiteRows, rows: SiteRows, sites: Sequence[Site], when: str, alone: SiteRows
    ) -> bool:
        """Whether all rows are the wanted ones; blames the first of the sites where not."""
        for site in sites:
            if wrong := self._wrong(rows[site], wanted[site], alone[site]):
                self._blame(site, f"{when}, at {site} {wrong}")
                return False
        return True

    def _wrong(self, rows: np.ndarray, wanted: np.ndarray, alone: np.ndarray) -> str | None:
        return difference(rows, wanted, alone, self._accuracy.repeated)

    def _blame(self, site: Site, reason: str) -> None:
        """Changes are the likelier cause; what still fails without any is not served."""
        of_changes = not self._info.at(site).unchangeable
        self._found.setdefault(site.hook_point, _Failure(reason, of_changes))


async def together(*work: Coroutine[object, object, T]) -> list[T]:
    """The results of all; the first that fails cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def make_prompts(vocabulary_size: int, rng: np.random.Generator) -> tuple[Prompt, Prompt]:
    """Two that begin alike and then differ, of ids that are seldom special tokens."""
    low = vocabulary_size // 8
    high = min(max(vocabulary_size // 2, low + VARIETY), vocabulary_size)
    short, long = (rng.integers(low, high, count).tolist() for count in PROMPT_TOKENS)
    long[:SHARED_TOKENS] = short[:SHARED_TOKENS]
    long[SHARED_TOKENS] = (short[SHARED_TOKENS] + 1) % vocabulary_size
    return tuple(short), tuple(long)
