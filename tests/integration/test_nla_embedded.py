"""Placed vectors, explanations and reconstructions on the embedded models, which are no NLAs: what
they say means nothing, but every number can be told.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from prometheus_client import REGISTRY
from safetensors.torch import save_file
from transformers import AutoTokenizer

from actserve_server import app
from actserve_server.config import Settings
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.explanations import Asking, Consumed, Explanation
from actserve_server.nla.loading import load
from actserve_server.nla.pair_sources import NlaSource
from tests.conformance.drivers import LANGUAGES, Language, printed
from tests.integration.harness import EngineThread, LoopThread, make_run

PYTHON, *OTHERS = LANGUAGES

LAYER = 20
SITE = Site(HookPoint.RESID_POST, LAYER)
WIDTH = 576
EMBEDDING = Site(HookPoint.EMBEDDING)
MARKER = "<empty_output>"
AV_TEMPLATE = "Repeat this word: {injection_char}"
SCALE = 3.0
"""The norm of a token's embedding."""
ROWS = 256
TEXTS = (
    "The river ran past the old stone mill.",
    "He sold his car and bought a horse",
    "for i in range(3):\n    print(i)",
    "Water boils at a hundred degrees.",
)


class Nla:
    """SmolLM2 as AV, and as AR with the identity as its head."""

    def __init__(self, thread: LoopThread, nlas: Autoencoders) -> None:
        self.loaded = nlas
        self._thread = thread
        (self._nla,) = nlas

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
            "extraction": {"injection_scale": SCALE},
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
    # On the event loop of the model, so that one server can have both.
    nlas = smollm2.call(
        load((NlaSource.model_validate(str(folder)),), smollm2.info, options, folder / "cache")
    )
    yield Nla(smollm2, nlas)
    smollm2.call(nlas.close())


@pytest.fixture(scope="module")
def address(nla: Nla, smollm2: EngineThread) -> Iterator[str]:
    """Of a server of the model and of what explains it."""

    async def start() -> app.App:
        settings: dict[str, Any] = {"port": 0, "drain_grace_s": 1.0}
        built = app.build(smollm2.engine, Settings(**settings), nla.loaded)
        await built.start()
        return built

    running = smollm2.call(start())
    yield f"127.0.0.1:{running.port}"
    smollm2.call(running.drain())
    smollm2.call(running.leave())


def test_256_explanations_at_once_are_those_of_one_at_a_time(
    nla: Nla, smollm2: EngineThread
) -> None:
    # Embeddings of other tokens, which the first words of an answer depend on.
    words = np.random.default_rng(1).choice(np.arange(1000, 9000), ROWS, replace=False).tolist()
    rows = smollm2.run(make_run(words, sites=[EMBEDDING])).rows[EMBEDDING]
    together = [each.text for each in nla.explain(rows, temperature=0.0, max_tokens=4)]
    alone = [nla.explain(row[None], temperature=0.0, max_tokens=4)[0].text for row in rows]
    assert together == alone
    assert len(set(alone)) > ROWS // 2, "the vectors make little difference"


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


@pytest.mark.parametrize("language", OTHERS, ids=lambda language: language.name)
def test_the_example_prints_in_every_language_what_it_prints_in_python(
    address: str, language: Language
) -> None:
    assert printed(language, "explain", address) == printed(PYTHON, "explain", address)
