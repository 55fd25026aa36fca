"""A seed makes sampling repeatable, whatever else is in the batch and however prompts are cut; and
each parameter does what it says, beside others in one batch, and leaves captured rows alone."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.prompts import TokenPrompt
from actserve_server.domain.runs import FinishReason, RepetitionDetection, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    EngineThread,
    Result,
    add,
    again,
    collect,
    greedy,
    make_run,
    relative_errors,
    started,
    vllm_counter,
)

STREAM = Site(HookPoint.RESID_POST, 10)
LOGITS = Site(HookPoint.LOGITS)

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


STORY = "Once upon a time there was a"


def _sampled(engine: EngineThread, **changes: Any) -> Run:
    """Twelve tokens of a story, each the likeliest, read as they are run."""
    sampling = replace(greedy(12), **changes)
    return make_run(engine.tokenize(STORY).ids, sites=[STREAM], sampling=sampling)


def test_tokens_are_chosen_as_asked_and_rows_are_those_of_the_tokens(
    smollm2: EngineThread,
) -> None:
    plain = smollm2.run(_sampled(smollm2))
    first, second = plain.token_ids[:2]
    (rare,) = smollm2.tokenize("#").ids
    asked = {
        "banned": _sampled(smollm2, logit_bias=((first, -100.0),)),
        "forced": _sampled(smollm2, logit_bias=((rare, 100.0),)),
        "allowed": _sampled(smollm2, allowed_token_ids=(first, rare)),
        "word": _sampled(smollm2, bad_words=((first,),)),
        "two tokens": _sampled(smollm2, bad_words=((first, second),)),
        "plain": _sampled(smollm2),
    }
    together = smollm2.run_all(asked.values())
    ids = {name: result.token_ids for name, result in zip(asked, together, strict=True)}
    assert ids["plain"] == plain.token_ids
    assert first not in ids["banned"]
    assert ids["forced"] == [rare] * 12
    assert set(ids["allowed"]) <= {first, rare}
    assert first not in ids["word"]
    assert ids["two tokens"][0] == first
    assert (first, second) not in zip(ids["two tokens"], ids["two tokens"][1:], strict=False)
    for result in together:
        whole = [*smollm2.tokenize(STORY).ids, *result.token_ids]
        read = smollm2.run(make_run(whole[:-1], sites=[STREAM]))
        assert result.positions == read.positions
        assert relative_errors(result.rows[STREAM], read.rows[STREAM]).max() < 1e-3


@pytest.mark.parametrize("asked", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_is_taken_off_the_models_logits(smollm2: EngineThread, asked: str) -> None:
    prompt = smollm2.tokenize("red blue red blue red blue red").ids
    penalized = replace(greedy(24), **{asked: 2.0})
    result = smollm2.run(make_run(prompt, sites=[LOGITS], sampling=penalized))
    logits = result.rows[LOGITS][len(prompt) - 1 :].astype(np.float64)
    for step, (row, chosen) in enumerate(zip(logits, result.token_ids, strict=True)):
        for token, count in Counter(result.token_ids[:step]).items():
            row[token] -= 2.0 * (count if asked == "frequency_penalty" else 1)
        assert chosen == int(np.argmax(row)), step
    assert result.token_ids != smollm2.run(make_run(prompt, sampling=greedy(24))).token_ids


def test_a_bad_word_is_kept_out_at_the_start_and_after_a_space(smollm2: EngineThread) -> None:
    text = smollm2.run(_sampled(smollm2)).text
    word = next(each for each in text.split() if each.isalpha())
    (spellings,) = smollm2.call(smollm2.engine.spell([word]))
    assert all(spellings)
    assert word not in smollm2.run(_sampled(smollm2, bad_words=spellings)).text.split()


def test_a_run_says_what_ended_it(smollm2: EngineThread) -> None:
    plain = smollm2.run(_sampled(smollm2))
    third = plain.token_ids[2]
    end = smollm2.info.end_token_ids[0]
    (rare,) = smollm2.tokenize("#").ids
    text = plain.text[4:7]
    always = {"logit_bias": ((end, 100.0),), "ignore_eos": False}
    shown = {"include_stop": True, "skip_special_tokens": False}
    patterns = RepetitionDetection(max_pattern_size=2, min_pattern_size=1, min_count=4)
    cases: list[tuple[dict[str, Any], FinishReason, int | str | None]] = [
        ({}, FinishReason.LENGTH, None),
        ({"stop": ("never so", text)}, FinishReason.STOP, text),
        ({"stop_token_ids": (third,)}, FinishReason.STOP, third),
        (always, FinishReason.STOP, end),
        ({**always, **shown}, FinishReason.STOP, end),
        ({**always, "min_tokens": 3}, FinishReason.STOP, end),
        (
            {"allowed_token_ids": (rare,), "repetition_detection": patterns},
            FinishReason.REPETITION,
            None,
        ),
    ]
    results = smollm2.run_all([_sampled(smollm2, **asked) for asked, _, _ in cases])
    told = [(result.finish, result.stopped_by) for result in results]
    assert told == [(reason, by) for _, reason, by in cases]
    assert results[1].text == plain.text[: plain.text.index(text)]
    assert results[2].token_ids[-1] == third
    assert results[3].text == ""
    assert results[4].text == smollm2.tokenize(TokenPrompt((end,))).texts[0]
    assert len(results[5].token_ids) == 4
    assert len(results[6].token_ids) == 4


def _scored(run: Run) -> Run:
    return replace(run, sampling=replace(run.sampling, logprobs=5))


def _logprobs(result: Result) -> np.ndarray:
    """Of the five likeliest tokens, at every generated one."""
    likeliest = [[each.logprob for each in told.top[:5]] for told in result.logprobs]
    assert len(likeliest) == len(result.token_ids)
    return np.array(likeliest)
