"""Explanations and reconstructions are those of the published recipe, in every family of models.

The pairs are tiny and random, so what they say means nothing; but they say it only if every step of
the recipe is followed.
"""

from collections.abc import Iterator
from contextlib import aclosing

import numpy as np
import pytest
import torch

from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.explanations import Asking, Consumed, Explanation, Flag
from actserve_server.nla.loading import load
from actserve_server.nla.pair_sources import NlaSource
from tests.integration.families import LAYERS
from tests.integration.harness import LoopThread
from tests.integration.nla_pairs import (
    NAMES,
    WITHOUT_BOS,
    Faults,
    Pair,
    Recipe,
    make_pair,
)

TOKENS = 16
ROWS = 24
ENOUGH = {"float32": 4 * ROWS, "bfloat16": 24}
"""Characters of which the recipe must be sure, or agreeing with it proves nothing."""
GREEDY = Asking(temperature=0.0, max_tokens=TOKENS)
TEXTS = (
    "You may not use this file except in compliance with the License.",
    "a capital city",
    "Grant of Patent License, and\nno charge.  ",
)
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("pair"))


class Loaded:
    """A pair, loaded as a server loads it, and the recipe it has to agree with."""

    def __init__(self, pair: Pair, dtype: str, thread: LoopThread, nlas: Autoencoders) -> None:
        self.pair = pair
        self.dtype = dtype
        self.recipe = Recipe(pair, TORCH[dtype])
        self._thread = thread
        (self._nla,) = nlas

    def explain(self, rows: np.ndarray, asking: Asking) -> list[Explanation]:
        """In the order of rows."""
        return self._thread.call(_explain(self._nla, rows, asking))

    def says(self, rows: np.ndarray) -> list[str]:
        """The greedy text of each row."""
        return [each.text for each in self.explain(rows, GREEDY)]

    def reconstruct(self, texts: tuple[str, ...]) -> np.ndarray:
        return self._thread.call(_reconstruct(self._nla, texts))

    def vectors(self) -> np.ndarray:
        """Some rows; with the same ones for every loaded pair of a width."""
        noise = np.random.default_rng(3).standard_normal((ROWS, self.pair.width))
        return (noise * np.geomspace(0.01, 100, ROWS)[:, None]).astype(np.float32)


async def _explain(nla: Autoencoder, rows: np.ndarray, asking: Asking) -> list[Explanation]:
    async with aclosing(nla.explain("test", rows, asking, Consumed())) as events:
        found = [event async for event in events if isinstance(event, Explanation)]
    return sorted(found, key=lambda each: (each.row, each.sample))


async def _reconstruct(nla: Autoencoder, texts: tuple[str, ...]) -> np.ndarray:
    return await nla.reconstruct("test", texts, Consumed())


@pytest.fixture(scope="module", params=TORCH)
def loaded(
    request: pytest.FixtureRequest, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    thread = LoopThread()
    model = FakeEngine(width=pair.width, layer_count=LAYERS).info
    options = EngineOptions(
        model_id="tiny",
        model_path=str(pair.av),
        dtype=request.param,
        kv_cache_memory_bytes=32 << 20,
        max_num_seqs=16,
        enforce_eager=True,
    )
    source = NlaSource(id="tiny", av=str(pair.av), ar=str(pair.ar))
    nlas = thread.call(load((source,), model, options, tmp_path_factory.mktemp("cache")))
    yield Loaded(pair, request.param, thread, nlas)
    thread.call(nlas.close())
    thread.close()


def test_greedy_explanations_are_those_of_the_recipe(loaded: Loaded) -> None:
    rows = loaded.vectors()
    theirs = [loaded.recipe.explain(row, TOKENS) for row in rows]
    for ours, text in zip(loaded.says(rows), theirs, strict=True):
        assert ours[: len(text)] == text
        assert ours == text or loaded.dtype != "float32"
    assert sum(map(len, theirs)) > ENOUGH[loaded.dtype], "rounding decides nearly everything"


def test_reconstructions_are_those_of_the_recipe(loaded: Loaded) -> None:
    for text, ours in zip(TEXTS, loaded.reconstruct(TEXTS), strict=True):
        theirs, limit = loaded.recipe.reconstruct(text)
        error = np.linalg.norm(ours - theirs)
        print(f"\n{loaded.pair.name} {loaded.dtype}: {error:.1e} off; the limit is {limit:.1e}")
        assert error < limit


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(scale=0.1), id="wrong scale"),
        pytest.param(Faults(slot_shift=1), id="shifted slot"),
        pytest.param(Faults(unscaled_embeddings=True), id="unscaled embeddings"),
    ],
)
def test_an_av_asked_wrongly_would_say_something_else(loaded: Loaded, faults: Faults) -> None:
    if faults.unscaled_embeddings and loaded.pair.name != "gemma3":
        pytest.skip("only Gemma scales its embeddings")
    if loaded.dtype != "float32":
        pytest.skip("rounding alone would make a difference")
    rows = loaded.vectors()
    assert loaded.says(rows) != [loaded.recipe.explain(row, TOKENS, faults) for row in rows]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(without_bos=True), id="missing BOS"),
        pytest.param(Faults(unscaled_embeddings=True), id="unscaled embeddings"),
    ],
)
def test_an_ar_asked_wrongly_would_give_another_row(loaded: Loaded, faults: Faults) -> None:
    if faults.unscaled_embeddings and loaded.pair.name != "gemma3":
        pytest.skip("only Gemma scales its embeddings")
    if faults.without_bos and loaded.pair.name == WITHOUT_BOS:
        pytest.skip("it has no BOS")
    (ours,) = loaded.reconstruct(TEXTS[:1])
    wrong, limit = loaded.recipe.reconstruct(TEXTS[0], faults)
    assert np.linalg.norm(ours - wrong) > 2 * limit


def test_a_text_without_a_closing_tag_comes_as_it_was_written_and_says_so(loaded: Loaded) -> None:
    for each in loaded.explain(loaded.vectors(), GREEDY):
        assert Flag.UNPARSED in each.flags
        assert each.injections == 1
