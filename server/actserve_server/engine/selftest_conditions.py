"""Proves at start-up that interventions act where their conditions are met, and nowhere else.

Each run writes the rows that its probe reads, so that every score is known to the last bit in any
element type, and what is made of a row shows whether its condition was met. All ways to make a
score of numbers are tried, at the changed site itself and at the first of the pass for the last.
"""

from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from actserve_server.domain.conditions import Condition
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Mean, Replace
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probes import (
    EACH_TOKEN,
    Aggregator,
    Ema,
    Probe,
    RollingMean,
    ScoreReduction,
)
from actserve_server.domain.runs import Capture, Intervention, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest import together
from actserve_server.engine.selftest_probes import rounded, served_sites

COMPONENTS = (-1.0, 0.5, -2.0, 1.0, 2.0, -1.5, 3.0, 0.25, -3.0, -0.5, 1.5)
"""Of the rows along the direction of the probe, token by token; no score is near another."""
AGGREGATORS = (
    EACH_TOKEN,
    Aggregator(Ema(0.5)),
    Aggregator(RollingMean(3)),
    Aggregator(reduction=ScoreReduction.MEAN),
    Aggregator(reduction=ScoreReduction.MAX),
    Aggregator(Ema(0.5), ScoreReduction.MAX),
    Aggregator(RollingMean(2), ScoreReduction.MEAN),
)
_ALL = Selection(Spans(((0, NO_END),)))


async def prove_conditions(engine: Engine, info: ModelInfo) -> ModelInfo:
    """`info`, with conditions withdrawn unless they decide as they should."""
    if info.conditions_unserved:
        return info
    sites = [site for site in served_sites(info) if not info.at(site).unchangeable]
    if not sites:
        return _withdrawn(info, "it takes a site that can be changed to prove them")
    rng = np.random.default_rng(0)
    changed = dict.fromkeys([sites[0], sites[-1]])
    trials = [
        _trial(sites[0], at, aggregator, info, rng) for at in changed for aggregator in AGGREGATORS
    ]
    token_ids = tuple(rng.integers(0, info.vocabulary_size, len(COMPONENTS)).tolist())
    found = await together(
        *(_rows(engine, info, trial.run(number, token_ids)) for number, trial in enumerate(trials))
    )
    for trial, rows in zip(trials, found, strict=True):
        if wrong := trial.wrong(rows):
            return _withdrawn(info, f"failed the self-test: {wrong}")
    return info


def _withdrawn(info: ModelInfo, reason: str) -> ModelInfo:
    return replace(info, conditions_unserved=reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """Writes rows to the probe's site, and another one to `site` where the condition is met."""

    written: np.ndarray
    """Float32 [tokens, width of the probe's site], exact in the element type."""
    condition: Condition
    site: Site
    other: np.ndarray
    """Float32 [width of `site`], exact in the element type."""
    met: np.ndarray
    """Bool [tokens]."""

    def run(self, number: int, token_ids: tuple[int, ...]) -> Run:
        probed = self.condition.probe.site
        return Run(
            id=f"self-test-condition-{number}",
            token_ids=token_ids,
            captures=(Capture((self.site,), _ALL),),
            interventions=(
                Intervention(
                    (probed,), Selection(Spans(((0, len(token_ids)),))), Replace(self.written)
                ),
                Intervention((self.site,), _ALL, Mean(self.other), when=self.condition),
            ),
            computes_all=True,
        )

    def wrong(self, rows: np.ndarray) -> str | None:
        """What is wrong with the rows that the run has left at the site."""
        acted = (rows == self.other).all(axis=1)
        if self.site == self.condition.probe.site:
            left = (rows == self.written).all(axis=1)
            wrong = (acted != self.met) | (left == self.met)
        else:
            wrong = acted != self.met
        if not wrong.any():
            return None
        token = int(np.argmax(wrong))
        met = "met" if self.met[token] else "not met"
        return (
            f"at {self.site}, with a probe at {self.condition.probe.site} and "
            f"{self.condition.aggregator}, token {token} is not as it should be where its "
            f"condition is {met}"
        )


def _trial(
    probed: Site, site: Site, aggregator: Aggregator, info: ModelInfo, rng: np.random.Generator
) -> _Trial:
    direction = _random(info.at(probed).width, rng)
    along = np.outer(COMPONENTS, direction / np.linalg.norm(direction))
    written = rounded((along + 0.01 * direction).astype(np.float32), info.element_type)
    other = rounded(_random(info.at(site).width, rng)[None], info.element_type)[0]
    # Large enough to show if it is left out.
    probe = Probe(probed, direction, bias=2 * float(np.linalg.norm(direction)))
    scores = aggregator.scores(probe.numbers(written).tolist())
    bound = _in_widest_gap(scores)
    return _Trial(
        written, Condition(probe, aggregator, above=bound), site, other, met=scores > bound
    )


def _in_widest_gap(scores: np.ndarray) -> float:
    ascending = np.sort(scores)
    gap = int(np.argmax(np.diff(ascending)))
    return float(ascending[gap : gap + 2].mean())


def _random(width: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(width).astype(np.float32)


async def _rows(engine: Engine, info: ModelInfo, run: Run) -> np.ndarray:
    """Of the only site that a run captures; NaN where none came."""
    (capture,) = run.captures
    width = info.at(capture.sites[0]).width
    rows = np.full((len(run.token_ids), width), np.nan, np.float32)
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                rows[event.positions] = to_float32(event.bits, info.element_type)
    return rows
