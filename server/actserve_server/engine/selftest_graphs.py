"""Proves at start-up that what is computed with fewer taps is what is computed with all of them.

An engine may leave out taps where no run of a step has a use for them (`Engine.graphs`). The
self-test captures every site, and so proves the model with all of its taps. Here the same is asked
of what reaches fewer hook points: the whole self-test with those alone; and of two prompts how
likely the next token is, beside what is told when every site is captured.
"""

import itertools
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import GREEDY_ONE_TOKEN, Capture, Run, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest import LOGPROBS, find_failures, make_prompts
from actserve_server.engine.selftest_probes import Prompt, served_sites

TOLERANCE = {ElementType.F32: 1e-3, ElementType.F16: 0.25, ElementType.BF16: 0.25}
"""How far log probabilities may be apart, as a share of how far they are from their mean. A graph
that fails costs time and no answer, so in 16 bits this is no more than rounding usually makes."""

_ids = itertools.count()


async def prove_graphs(engine: Engine, info: ModelInfo) -> Mapping[str, str]:
    """Drops each graph of the engine that fails, and says why. Raises `ActserveError` if a run
    fails as a whole."""
    failures: dict[str, str] = {}
    for name, points in dict(engine.graphs).items():
        if reason := await _failure(engine, info, points):
            await engine.drop_graph(name)
            failures[name] = reason
    return failures


async def _failure(engine: Engine, info: ModelInfo, points: frozenset[HookPoint]) -> str | None:
    sites = served_sites(info)
    reached = tuple(site for site in sites if site.hook_point in points)
    for prompt in make_prompts(info.vocabulary_size, np.random.default_rng(0)):
        told, wanted = [await _told(engine, info, prompt, which) for which in (reached, sites)]
        if wrong := _difference(told, wanted, TOLERANCE[info.element_type]):
            return wrong
    if reached and (found := await find_failures(engine, _only(info, points))):
        return next(iter(found.values()))
    return None


def _only(info: ModelInfo, points: frozenset[HookPoint]) -> ModelInfo:
    """The model as if it had no other hook points."""
    left_out = {
        point: found if point in points else replace(found, unserved=found.unserved or "left out")
        for point, found in info.hook_points.items()
    }
    return replace(info, hook_points=left_out)


def _difference(
    told: Mapping[int, float], wanted: Mapping[int, float], tolerance: float
) -> str | None:
    """What makes log probabilities not the wanted ones, both of the likeliest tokens."""
    both = sorted(told.keys() & wanted.keys())
    if 2 * len(both) < len(wanted):
        return f"of the {len(wanted)} likeliest tokens it knows {len(both)}"
    one, other = (np.array([each[token] for token in both]) for each in (told, wanted))
    size = float(np.linalg.norm(other - other.mean())) or 1.0
    error = float(np.linalg.norm(one - other)) / size
    if error <= tolerance:
        return None
    return f"log probabilities are off by {error:.2g} of their size; the limit is {tolerance:g}"


async def _told(
    engine: Engine, info: ModelInfo, prompt: Prompt, sites: tuple[Site, ...]
) -> Mapping[int, float]:
    """The log probabilities of the likeliest next tokens, by id, while these sites are captured."""
    run = Run(
        id=f"self-test-graph-{next(_ids)}",
        token_ids=prompt,
        sampling=replace(GREEDY_ONE_TOKEN, logprobs=min(LOGPROBS, info.vocabulary_size)),
        captures=(Capture(sites, Selection(Spans(((0, NO_END),)))),) if sites else (),
        computes_all=True,
    )
    told: dict[int, float] = {}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                for token in event.logprobs:
                    told |= {each.id: each.logprob for each in token.top}
    return told
