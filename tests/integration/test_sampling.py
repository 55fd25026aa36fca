"""A seed makes sampling repeatable, whatever else is in the batch and however prompts are cut."""

import asyncio
from dataclasses import replace

import numpy as np

from actserve_server.domain.runs import Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    Result,
    add,
    again,
    collect,
    greedy,
    make_run,
    started,
    vllm_counter,
)

STREAM = Site(HookPoint.RESID_POST, 10)

LONG = "The river ran past the old stone mill and the garden behind it. " * 50
"""Several times as many tokens as the engine computes in a step."""


def _seeded(engine: EngineThread, text: str, seed: int, max_tokens: int = 12) -> Run:
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens, seed=seed, ignore_eos=True)
    return make_run(engine.tokenize(text).ids, sampling=sampling)


def test_a_seed_gives_the_same_tokens_alone_and_beside_prompts_that_are_cut(
    smollm2: EngineThread,
) -> None:
    runs = [_seeded(smollm2, LONG[20 * number :], number) for number in range(4)]
    runs += [_seeded(smollm2, "Once upon a time", number) for number in range(8)]
    assert max(len(run.token_ids) for run in runs) > 600
    alone = [smollm2.run(again(run)).token_ids for run in runs]
    together = [result.token_ids for result in smollm2.run_all(again(run) for run in runs)]
    assert together == alone
    assert len({tuple(ids) for ids in alone}) == len(alone)


def test_another_seed_gives_other_tokens_to_a_prompt_that_is_cut(smollm2: EngineThread) -> None:
    first = _seeded(smollm2, LONG, 1)
    other = replace(again(first), sampling=replace(first.sampling, seed=2))
    assert smollm2.run(first).token_ids != smollm2.run(other).token_ids


def test_a_seed_gives_the_same_tokens_beside_preempted_cancelled_and_steered_runs(
    smollm2: EngineThread,
) -> None:
    vector = np.random.default_rng(0).standard_normal(smollm2.info.width).astype(np.float32)
    text = "The letter lay on the table in the garden. " * 6
    runs = [_scored(_seeded(smollm2, f"{number} {text}", number, 50)) for number in range(5)]
    runs[-2:] = (replace(run, interventions=(add(STREAM, vector, 2.0),)) for run in runs[-2:])
    alone = [smollm2.run(again(run)) for run in runs]
    ids = smollm2.tokenize(text).ids
    steered = [make_run(ids, add(STREAM, vector, 20.0), sampling=greedy(40)) for _ in range(16)]

    async def together() -> list[Result]:
        cancelled = [asyncio.ensure_future(started(smollm2.engine, again(run))) for run in runs]
        kept = (collect(smollm2.engine, run) for run in (*map(again, runs), *steered))
        results, _ = await asyncio.gather(asyncio.gather(*kept), asyncio.gather(*cancelled))
        return results

    before = vllm_counter("vllm:num_preemptions_total")
    results = smollm2.call(together())[: len(runs)]
    assert vllm_counter("vllm:num_preemptions_total") > before, "nothing was preempted"
    for loaded, single in zip(results, alone, strict=True):
        assert loaded.token_ids == single.token_ids
        assert np.abs(_logprobs(loaded) - _logprobs(single)).max() <= 1e-3


def _scored(run: Run) -> Run:
    return replace(run, sampling=replace(run.sampling, logprobs=5))


def _logprobs(result: Result) -> np.ndarray:
    """Of the five likeliest tokens, at every generated one."""
    likeliest = [[each.logprob for each in told.top[:5]] for told in result.logprobs]
    assert len(likeliest) == len(result.token_ids)
    return np.array(likeliest)
