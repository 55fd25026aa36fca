"""A run that was cut anywhere and replays its tokens goes on as if nothing had happened, beside
others: the same tokens, text, log probabilities and end."""

from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.runs import Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    Result,
    again,
    greedy,
    make_run,
    relative_errors,
    vllm_counter,
)

STREAM = Site(HookPoint.RESID_POST, 10)
STORY = "Once upon a time there was a small robot who lived by the sea. Every day it"
LONG = "The river ran past the old stone mill and the garden behind it. " * 30
"""More tokens than the engine computes in a step."""

TOKENS = 24
CUTS = (1, 2, 9, 23, 24)

SAMPLINGS = {
    "seeded": Sampling(
        temperature=0.9,
        top_p=0.95,
        top_k=100,
        min_p=0.01,
        seed=11,
        max_tokens=TOKENS,
        min_tokens=TOKENS,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logprobs=4,
    ),
    "greedy": replace(greedy(TOKENS), frequency_penalty=1.5, logprobs=2),
    "a stop string": Sampling(
        temperature=0.8, seed=5, max_tokens=60, stop=(". ", "!", "."), min_tokens=3, logprobs=1
    ),
    "bad words": Sampling(temperature=1.0, seed=2, max_tokens=TOKENS, ignore_eos=True, logprobs=1),
}


def _runs(engine: EngineThread) -> dict[str, Run]:
    ids = engine.tokenize(STORY).ids
    runs = {
        name: make_run(ids, sites=[STREAM] if name == "seeded" else [], sampling=sampling)
        for name, sampling in SAMPLINGS.items()
    }
    first = engine.run(again(runs["bad words"])).token_ids
    banned = replace(SAMPLINGS["bad words"], bad_words=((first[3],), tuple(first[5:7])))
    runs["bad words"] = replace(runs["bad words"], sampling=banned)
    long = replace(SAMPLINGS["seeded"], seed=4)
    runs["a prompt in parts"] = make_run(engine.tokenize(LONG).ids, sampling=long)
    return runs


@pytest.fixture(scope="module")
def whole(smollm2: EngineThread) -> dict[str, tuple[Run, Result]]:
    runs = _runs(smollm2)
    return {name: (run, smollm2.run(again(run))) for name, run in runs.items()}


def test_what_is_replayed_and_what_comes_after_are_those_of_the_uncut_run(
    smollm2: EngineThread, whole: dict[str, tuple[Run, Result]]
) -> None:
    cuts = [
        (name, replace(again(run), replayed=tuple(result.token_ids[:cut])))
        for name, (run, result) in whole.items()
        for cut in CUTS
        if cut <= len(result.token_ids)
    ]
    others = [make_run(whole["seeded"][0].token_ids[:n], sampling=greedy(60)) for n in range(2, 12)]
    before = vllm_counter("vllm:num_preemptions_total")
    results = smollm2.run_all([*others, *(run for _, run in cuts)])[len(others) :]
    assert vllm_counter("vllm:num_preemptions_total") > before
    for (name, run), result in zip(cuts, results, strict=True):
        wanted = whole[name][1]
        where = f"{name}, cut after {len(run.replayed)}"
        assert result.token_ids == wanted.token_ids, where
        assert result.text == wanted.text, where
        assert (result.finish, result.stopped_by) == (wanted.finish, wanted.stopped_by), where
        for ours, theirs in zip(result.logprobs, wanted.logprobs, strict=True):
            assert abs(ours.logprob - theirs.logprob) < 1e-3, where
            assert ours.top[0].id == theirs.top[0].id, where
        if name == "seeded":
            assert result.positions == wanted.positions
            assert relative_errors(result.rows[STREAM], wanted.rows[STREAM]).max() < 1e-3


def test_a_token_that_nothing_would_sample_is_replayed_and_the_others_are_left_alone(
    smollm2: EngineThread, whole: dict[str, tuple[Run, Result]]
) -> None:
    run, wanted = whole["seeded"]
    (rare,) = smollm2.tokenize("#").ids
    banned = replace(run.sampling, logit_bias=((rare, -100.0),), min_tokens=0)
    odd = replace(again(run), sampling=banned, replayed=(rare,) * 5)
    beside, result = smollm2.run_all([again(run), odd])
    assert result.token_ids[:5] == [rare] * 5
    assert rare not in result.token_ids[5:]
    assert result.logprobs[0].logprob < -5
    assert beside.token_ids == wanted.token_ids


def test_the_text_of_a_run_that_is_ended_is_what_it_would_have_given(
    smollm2: EngineThread, whole: dict[str, tuple[Run, Result]]
) -> None:
    run, result = whole["seeded"]
    for cut in CUTS:
        ended = replace(again(run), sampling=replace(run.sampling, max_tokens=cut, min_tokens=0))
        assert smollm2.engine.ended_text(run, result.token_ids[:cut]) == smollm2.run(ended).text
    assert np.all([smollm2.engine.ended_text(run, ()) == ""])
