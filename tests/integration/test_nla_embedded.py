"""Placed vectors, explanations and reconstructions on the embedded models, which are no NLAs: what
they say means nothing, but every number can be told.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from prometheus_client import REGISTRY
from safetensors.torch import save_file
from transformers import AutoTokenizer

from actserve_server.domain.runs import Placement, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.explanations import Asking, Consumed, Explanation
from actserve_server.nla.loading import load
from actserve_server.nla.sources import NlaSource
from tests.integration.harness import (
    EngineThread,
    LoopThread,
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

LAYER = 20
SITE = Site(HookPoint.RESID_POST, LAYER)
WIDTH = 576
EMBEDDING = Site(HookPoint.EMBEDDING)
MARKER = "<empty_output>"
AV_TEMPLATE = "What is the meaning of <concept>{injection_char}</concept>?"
ROWS = 256
KV_BYTES = {"smollm2-135m": 40 << 20, "gemma3-270m": 32 << 20}
"""About 900 tokens: less than the runs of a full batch need, so that some are preempted."""
TEXTS = (
    "The capital of France is Paris.",
    "She opened the letter and began to cry",
    "def add(a, b):\n    return a + b",
    "In 1969 two men walked on the Moon.",
)


# --- placed embeddings ----------------------------------------------------------


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
            block_size=32,
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
    ids = placing.tokenize(" ".join(TEXTS)).ids
    own = placing.run(make_run(ids, sites=[EMBEDDING])).rows[EMBEDDING]
    noise = np.random.default_rng(0).standard_normal((8, own.shape[1])).astype(np.float32)
    norm = np.linalg.norm(own, axis=1).max()
    vectors = noise * (norm / np.linalg.norm(noise, axis=1, keepdims=True))

    def run(vector: np.ndarray) -> Run:
        return replace(
            make_run(ids, sampling=greedy(12)), placements=(Placement(len(ids) - 5, vector),)
        )

    alone = []
    for vector in vectors:
        assert placing.call(placing.engine.vllm.reset_prefix_cache())
        alone.append(placing.run(run(vector)).text)
    warm = [placing.run(run(vector)).text for vector in vectors]
    assert warm == alone
    assert len(set(alone)) > 1, "the vectors make no difference"


@pytest.mark.parametrize("placing", ["smollm2-135m"], indirect=True)
def test_a_placed_vector_means_the_same_beside_preempted_cancelled_and_steered_runs(
    placing: EngineThread,
) -> None:
    ids = placing.tokenize(" ".join(TEXTS)).ids
    # Embeddings of other tokens: what is read at the prompt's end decides how it goes on.
    words = np.random.default_rng(5).integers(1000, 9000, 12).tolist()
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


# --- an NLA made of the model itself ----------------------------------------------


class Nla:
    """SmolLM2 as AV, and as AR with the identity as its head."""

    def __init__(self, thread: LoopThread, nla: Autoencoder) -> None:
        self._thread = thread
        self._nla = nla

    def explain(self, rows: np.ndarray, **asking: Any) -> list[Explanation]:
        async def collected() -> list[Explanation]:
            events = self._nla.explain("test", rows, Asking(**asking), Consumed())
            async with aclosing(events):
                return [event async for event in events if isinstance(event, Explanation)]

        found = self._thread.call(collected())
        return sorted(found, key=lambda each: (each.row, each.sample))

    def cosines(self, rows: np.ndarray, texts: Sequence[str]) -> list[float]:
        scores = self._thread.call(self._nla.score("test", rows, texts, None, Consumed()))
        return [score.cosine for score in scores]


@pytest.fixture(scope="module")
def nla(
    smollm2: EngineThread,
    model_path: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Nla]:
    model, folder = model_path("smollm2-135m"), tmp_path_factory.mktemp("nla")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    turn = {"role": "user", "content": AV_TEMPLATE.replace("{injection_char}", MARKER)}
    ids = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)
    slot = ids.index(tokenizer.convert_tokens_to_ids(MARKER))
    for half in ("av", "ar"):
        (folder / half).mkdir()
        for path in model.iterdir():
            (folder / half / path.name).symlink_to(path)
        sidecar = {
            "kind": "nla_model",
            "role": half,
            "base_checkpoint": "smollm2-135m",
            "d_model": WIDTH,
            "extraction": {"injection_scale": 10.0},
            "extraction_layer_index": LAYER,
            "tokens": {
                "injection_char": MARKER,
                "injection_token_id": ids[slot],
                "injection_left_neighbor_id": ids[slot - 1],
                "injection_right_neighbor_id": ids[slot + 1],
            },
            "prompt_templates": {"av": AV_TEMPLATE, "ar": "{explanation}"},
        }
        (folder / half / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar))
    save_file({"weight": torch.eye(WIDTH)}, folder / "ar" / "value_head.safetensors")
    options = EngineOptions(
        model_id="smollm2-135m",
        model_path=str(model),
        dtype="float32",
        max_num_seqs=64,
        kv_cache_memory_bytes=512 << 20,
        enforce_eager=True,  # The pair that comes with the server is compiled in its own test.
    )
    thread = LoopThread()
    nlas = thread.call(
        load((NlaSource.model_validate(str(folder)),), smollm2.info, options, folder / "cache")
    )
    (loaded,) = nlas
    yield Nla(thread, loaded)
    thread.call(nlas.close())
    thread.close()


def test_256_explanations_at_once_are_those_of_one_at_a_time(nla: Nla) -> None:
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    together = [each.text for each in nla.explain(rows, temperature=0.0, max_tokens=8)]
    alone = [nla.explain(row[None], temperature=0.0, max_tokens=8)[0].text for row in rows]
    assert together == alone
    assert len(set(alone)) > ROWS // 8, "the vectors make little difference"


def test_an_ar_that_is_the_model_itself_reconstructs_the_row_of_the_text(
    nla: Nla, smollm2: EngineThread
) -> None:
    rows = [
        smollm2.run(make_run(smollm2.tokenize(text).ids, sites=[SITE])).rows[SITE][-1]
        for text in TEXTS
    ]
    assert nla.cosines(np.stack(rows), TEXTS) == pytest.approx([1.0] * len(TEXTS), abs=1e-6)


def test_another_text_scores_lower(nla: Nla, smollm2: EngineThread) -> None:
    rows = [
        smollm2.run(make_run(smollm2.tokenize(text).ids, sites=[SITE])).rows[SITE][-1]
        for text in TEXTS
    ]
    assert max(nla.cosines(np.stack(rows), [*TEXTS[1:], TEXTS[0]])) < 0.95


def test_vllms_metrics_stay_those_of_the_served_model(nla: Nla) -> None:
    models = {
        sample.labels["model_name"]
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("vllm:") and "model_name" in sample.labels
    }
    assert models
    assert not {model for model in models if model.endswith(("-av", "-ar"))}


def test_seeded_samples_differ_and_repeat(nla: Nla) -> None:
    row = np.random.default_rng(2).standard_normal((1, WIDTH)).astype(np.float32)
    first, again = (
        [each.text for each in nla.explain(row, samples=4, seed=7, max_tokens=8)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 1
