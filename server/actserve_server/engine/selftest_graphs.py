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
from actserve_server.engine.api import REPLAYED_GRAPH, Engine
from actserve_server.engine.selftest import find_failures, make_prompts
from actserve_server.engine.selftest_checks import LOGPROB_TOLERANCE, LOGPROBS, logprob_difference
from actserve_server.engine.selftest_probes import Prompt, served_sites
from actserve_server.engine.selftest_replayed import replayed_fault

_ids = itertools.count()


async def prove_graphs(engine: Engine, info: ModelInfo) -> Mapping[str, str]:
    """Drops each graph of the engine that fails, and says why. Raises `ActserveError` if a run
    fails as a whole."""
    failures: dict[str, str] = {}
    for name, points in dict(engine.graphs).items():
        of_replays = name == REPLAYED_GRAPH
        failure = replayed_fault(engine, info) if of_replays else _failure(engine, info, points)
        if reason := await failure:
            await engine.drop_graph(name)
            failures[name] = reason
    return failures


async def _failure(engine: Engine, info: ModelInfo, points: frozenset[HookPoint]) -> str | None:
    sites = served_sites(info)
    reached = tuple(site for site in sites if site.hook_point in points)
    for prompt in make_prompts(info.vocabulary_size, np.random.default_rng(0)):
        told, wanted = [await _told(engine, info, prompt, which) for which in (reached, sites)]
        if wrong := logprob_difference(told, wanted, LOGPROB_TOLERANCE[info.element_type]):
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
