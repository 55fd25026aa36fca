"""What a server proves to itself before it serves: every tap, in company, does what it does alone.

Two prompts run one at a time and give the rows of every served site, of which must hold what holds
in any decoder (`selftest_checks.py`). Then they run again all at once, beside a run for every
operation at every hook point (`selftest_probes.py`), so that each run shares its batches with
others that capture and change other things. Every row must be the one from alone, changed by
exactly the operation's formula where its run asked for it, and what is changed must move what is
computed from it next.

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
from actserve_server.domain.runs import GREEDY_ONE_TOKEN, Capture, Intervention, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest_checks import (
    ACCURACY,
    Failures,
    SiteRows,
    broken_sums,
    difference,
    incomplete,
    misplaced,
    relative_errors,
    repeated,
    wrong_strength,
)
from actserve_server.engine.selftest_probes import (
    ADDITION,
    CHANGED,
    STRONGEST,
    Probe,
    Prompt,
    make_probes,
    served_sites,
)

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
    return SelfTest(info, failures, next(runs))


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

    def __init__(self, engine: Engine, info: ModelInfo, runs: Iterator[int]) -> None:
        self._engine = engine
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
        prompts = _prompts(self._info.vocabulary_size, self._rng)
        alone = {prompt: await self._rows(prompt, self._sites) for prompt in prompts}
        if wrong := self._check_alone(*alone.values()):
            return {point: _Failure(reason, of_changes=False) for point, reason in wrong.items()}
        probes = list(make_probes(self._info, alone, self._rng))
        together = await _together(
            *(self._rows(prompt, self._sites) for prompt in prompts),
            *(self._probe(probe) for probe in probes),
        )
        plain = dict(zip(prompts, together, strict=False))
        for prompt, rows in plain.items():
            self._judge_plain(alone[prompt], rows)
        for probe, rows in zip(probes, together[len(prompts) :], strict=True):
            self._judge_probe(probe, alone[probe.prompt], plain[probe.prompt], rows)
        return self._found

    async def _rows(
        self, prompt: Prompt, sites: Sequence[Site], *changes: Intervention
    ) -> SiteRows:
        """The rows of one run; NaN where none came."""
        run = Run(
            id=f"self-test-{next(self._runs)}",
            token_ids=prompt,
            sampling=GREEDY_ONE_TOKEN,
            captures=(Capture(tuple(sites), Selection(Spans(((0, NO_END),)))),),
            interventions=changes,
        )
        rows = {
            site: np.full((len(prompt), self._info.at(site).width), np.nan, np.float32)
            for site in sites
        }
        async with aclosing(self._engine.run(run)) as events:
            async for event in events:
                if isinstance(event, Rows):
                    values = to_float32(event.bits, self._info.element_type)
                    rows[sites[event.site_index]][event.positions] = values
        return rows

    def _probe(self, probe: Probe) -> Coroutine[object, object, SiteRows]:
        change = Intervention((probe.site,), Selection(CHANGED), probe.operation)
        return self._rows(probe.prompt, probe.sites, change)

    def _check_alone(self, first: SiteRows, second: SiteRows) -> Failures:
        return (
            {**incomplete(second), **incomplete(first)}
            or {**repeated(second), **misplaced(first, second, SHARED_TOKENS, self._accuracy)}
            # Last, because a sum does not tell which of its sites is wrong.
            or broken_sums((first, second), self._info.layer_count, self._accuracy)
        )

    def _judge_plain(self, alone: SiteRows, rows: SiteRows) -> None:
        """What other runs change must not show."""
        self._all_as(alone, rows, self._sites, "beside other runs", alone)

    def _judge_probe(self, probe: Probe, alone: SiteRows, plain: SiteRows, rows: SiteRows) -> None:
        """The change is the formula's, at its positions alone, and the model computes with it."""
        wanted = {probe.site: probe.apply(alone[probe.site])}
        if (
            self._all_as(alone, rows, probe.before, "beside other runs", alone)
            and self._all_as(wanted, rows, [probe.site], f"after {probe.name}", alone)
            and self._as_strong(probe, alone, rows)
            and probe.name == STRONGEST
            and probe.next is not None
            and not self._wrong(plain[probe.next], alone[probe.next], alone[probe.next])
        ):
            self._judge_effect(probe, *(each[probe.next] for each in (alone, plain, rows)))

    def _as_strong(self, probe: Probe, alone: SiteRows, rows: SiteRows) -> bool:
        if probe.name != ADDITION:
            return True
        before = alone[probe.site]
        limit = self._accuracy.strength
        wrong = wrong_strength(rows[probe.site], probe.apply(before), before, limit)
        if wrong:
            self._blame(probe.site, f"after {probe.name}, at {probe.site} {wrong}")
        return not wrong

    def _judge_effect(
        self, probe: Probe, alone: np.ndarray, plain: np.ndarray, rows: np.ndarray
    ) -> None:
        """What is computed next moves by more than from batch to batch."""
        here = probe.positions
        moved, noise = (relative_errors(each[here], alone[here]) for each in (rows, plain))
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


async def _together(*work: Coroutine[object, object, T]) -> list[T]:
    """The results of all; the first that fails cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _prompts(vocabulary_size: int, rng: np.random.Generator) -> tuple[Prompt, Prompt]:
    """Two that begin alike and then differ, of ids that are seldom special tokens."""
    low = vocabulary_size // 8
    high = min(max(vocabulary_size // 2, low + VARIETY), vocabulary_size)
    short, long = (rng.integers(low, high, count).tolist() for count in PROMPT_TOKENS)
    long[:SHARED_TOKENS] = short[:SHARED_TOKENS]
    long[SHARED_TOKENS] = (short[SHARED_TOKENS] + 1) % vocabulary_size
    return tuple(short), tuple(long)
