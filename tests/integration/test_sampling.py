"""A seed makes sampling repeatable, whatever else is in the batch and however prompts are cut."""

from dataclasses import replace

from actserve_server.domain.runs import Run, Sampling
from tests.integration.harness import EngineThread, again, make_run

LONG = "The river ran past the old stone mill and the garden behind it. " * 50
"""Several times as many tokens as the engine computes in a step."""


def _seeded(engine: EngineThread, text: str, seed: int) -> Run:
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=seed, ignore_eos=True)
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
