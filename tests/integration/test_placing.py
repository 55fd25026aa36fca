"""A vector placed in a prompt is read as a token's embedding is, by whoever asked for it alone."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actserve_server.domain.runs import Placement, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
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

EMBEDDING = Site(HookPoint.EMBEDDING)
BLOCK = 32
"""Tokens that are cached together."""
KV_BYTES = {"smollm2-135m": 40 << 20, "gemma3-270m": 32 << 20}
"""About 900 tokens: less than the runs of a full batch need, so that some are preempted."""
TEXTS = (
    "The capital of France is Paris.",
    "She opened the letter and began to cry",
    "def add(a, b):\n    return a + b",
    "In 1969 two men walked on the Moon.",
)


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def placing(
    request: pytest.FixtureRequest, model_path: Callable[[str], Path]
) -> Iterator[EngineThread]:
    engine = EngineThread(
        EngineOptions(
            model_id=request.param,
            model_path=str(model_path(request.param)),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=16,
            block_size=BLOCK,
            kv_cache_memory_bytes=KV_BYTES[request.param],
            hook_points=("embedding", "resid_post"),
            place_embeddings=True,
            enforce_eager=True,
        )
    )
    yield engine
    engine.close()


def _placed(run: Run, rows: np.ndarray, positions: Sequence[int]) -> Run:
    return replace(run, placements=tuple(Placement(at, rows[at]) for at in positions))


@pytest.mark.parametrize("share", ["all", "every third", "the first", "the last"])
def test_a_prompts_own_embeddings_give_the_tokens_that_its_ids_give(
    placing: EngineThread, share: str
) -> None:
    prompts = [placing.tokenize(text) for text in TEXTS]
    plain = placing.run_all(make_run(prompt.ids, sampling=greedy(16)) for prompt in prompts)
    runs = []
    for prompt in prompts:
        everywhere = range(len(prompt.ids))
        positions = {
            "all": everywhere,
            "every third": everywhere[::3],
            "the first": everywhere[:1],
            "the last": everywhere[-1:],
        }[share]
        own = placing.run(make_run(prompt.ids, sites=[EMBEDDING])).rows[EMBEDDING]
        runs.append(_placed(make_run(prompt.ids, sampling=greedy(16)), own, positions))
    assert [result.text for result in placing.run_all(runs)] == [each.text for each in plain]


def test_a_cached_prefix_is_never_that_of_another_vector(placing: EngineThread) -> None:
    ids = placing.tokenize(" ".join(TEXTS)).ids[: BLOCK + 1]
    words = np.random.default_rng(0).integers(1000, 9000, 4).tolist()
    vectors = placing.run(make_run(words, sites=[EMBEDDING])).rows[EMBEDDING]

    def run(vector: np.ndarray) -> Run:
        # In the block that is cached, and two tokens before what is generated.
        return replace(
            make_run(ids, sampling=greedy(6)), placements=(Placement(BLOCK - 1, vector),)
        )

    alone = []
    for vector in vectors:
        assert placing.call(placing.engine.vllm.reset_prefix_cache())
        alone.append(placing.run(run(vector)).text)
    warm = [placing.run(run(vector)).text for vector in vectors]
    cached = vllm_counter("vllm:prefix_cache_hits_total")
    hot = [placing.run(run(vector)).text for vector in vectors]
    assert vllm_counter("vllm:prefix_cache_hits_total") == cached + BLOCK * len(vectors)
    assert hot == warm == alone
    assert len(set(alone)) > 1, "the vectors make no difference"


@pytest.mark.parametrize("placing", ["smollm2-135m"], indirect=True)
def test_a_placed_vector_means_the_same_beside_preempted_cancelled_and_steered_runs(
    placing: EngineThread,
) -> None:
    ids = placing.tokenize(" ".join(TEXTS)).ids
    # Embeddings of other tokens: what is read at the prompt's end decides how it goes on.
    words = np.random.default_rng(5).integers(1000, 9000, 8).tolist()
    vectors = placing.run(make_run(words, sites=[EMBEDDING])).rows[EMBEDDING]
    middle = Site(HookPoint.RESID_POST, placing.info.layer_count // 2)

    def placed(number: int) -> Run:
        # Some read rows as well, and then compute the whole prompt; the others may share its head.
        read = [middle] if number % 2 else []
        run = make_run(ids, sites=read, sampling=greedy(30))
        at = {len(ids) - 1, len(ids) - 2 - number % 8}
        placements = tuple(Placement(slot, vectors[number]) for slot in sorted(at))
        return replace(run, placements=placements)

    def steered(number: int) -> Run:
        return make_run(ids, add(EMBEDDING, vectors[number], 0.5), sampling=greedy(30))

    runs = [placed(number) for number in range(len(vectors))]
    others = [steered(number) for number in range(8)]
    others += [make_run(ids[number:], sampling=greedy(30)) for number in range(8)]
    alone = []
    for run in runs:
        assert placing.call(placing.engine.vllm.reset_prefix_cache())
        alone.append(placing.run(again(run)))

    async def together() -> list[Result]:
        cancelled = [asyncio.ensure_future(started(placing.engine, placed(n))) for n in range(8)]
        return [
            result
            for result in await asyncio.gather(
                *(collect(placing.engine, run) for run in (*runs, *others)), *cancelled
            )
            if result is not None
        ]

    before = vllm_counter("vllm:num_preemptions_total")
    results = placing.call(together())[: len(runs)]
    assert vllm_counter("vllm:num_preemptions_total") > before, "nothing was preempted"
    assert placing.engine.open_inboxes == 0
    for ours, theirs in zip(results, alone, strict=True):
        assert ours.token_ids == theirs.token_ids
        for loaded, single in zip(ours.captures, theirs.captures, strict=True):
            assert loaded.positions == single.positions
            assert relative_errors(loaded.rows[middle], single.rows[middle]).max() < 1e-3
    assert len({result.text for result in alone}) > len(vectors) // 2, "the vectors do nothing"
