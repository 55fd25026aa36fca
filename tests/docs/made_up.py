"""A made-up SmolLM2: the real one's description and tokenizer, in front of rows that mean nothing.

What the documents show is run against it, so that nobody waits for a model.
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from actserve_server.dictionaries.dictionary_sources import SHIPPED
from actserve_server.domain.model import Limits
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine, Vocabulary
from actserve_server.engine.vllm.tokenizer import PromptTokenizer
from actserve_server.models.embedded import default_cache_dir, prepare
from actserve_server.models.targets import SMOLLM2_135M_INSTRUCT
from tests.contract.harness import serving
from tests.contract.nlas import Tiny

MODEL = "smollm2-135m"
CONFIG = SMOLLM2_135M_INSTRUCT.config
WIDTH: int = CONFIG["hidden_size"]


class MadeUpModel(FakeEngine):
    """What a client can tell from SmolLM2 by its numbers alone."""

    def __init__(self) -> None:
        cache = os.environ.get("ACTSERVE_CACHE")
        folder = prepare(MODEL, Path(cache) if cache else default_cache_dir())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        super().__init__(
            model_id=MODEL,
            architecture=CONFIG["architectures"][0],
            layer_count=CONFIG["num_hidden_layers"],
            width=WIDTH,
            heads=CONFIG["num_attention_heads"],
            key_value_heads=CONFIG["num_key_value_heads"],
            mlp_width=CONFIG["intermediate_size"],
            vocabulary=Vocabulary(
                size=CONFIG["vocab_size"],
                longest=max(map(len, tokenizer.get_vocab())),
                end=tokenizer.eos_token_id,
                special=frozenset(tokenizer.all_special_ids),
                decode=tokenizer.decode,
            ),
            limits=Limits(max_sequence_tokens=CONFIG["max_position_embeddings"]),
        )
        self._prompts = PromptTokenizer(tokenizer, CONFIG["vocab_size"])

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return await self._prompts.tokenize(prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        return await self._prompts.spell(words)

    async def close(self) -> None:
        self._prompts.close()
        await super().close()


def made_up_nla() -> Tiny:
    """What explains it, where the pair in the box explains the real one."""
    return Tiny(
        id=MODEL,
        model_id=MODEL,
        site=Site(HookPoint.RESID_POST, 20),
        av=FakeEngine(width=WIDTH),
        ar=FakeEngine(width=WIDTH),
        # As many tokens as the pair in the box may write.
        sampling=Sampling(temperature=1.0, max_tokens=64),
        head=np.random.default_rng(7).standard_normal((WIDTH, WIDTH)).astype(np.float32),
    )


@contextmanager
def made_up_server() -> Iterator[str]:
    """The address of a server of both, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    # Of made-up rows the dictionary in the box explains nothing.
    dictionary = f"{MODEL}={SHIPPED / MODEL} least_explained=-inf"
    server = serving(
        MadeUpModel(), made_up_nla().loaded(), dictionary=[dictionary], max_dictionary_bytes=1 << 26
    )
    served = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
    try:
        yield f"localhost:{served.app.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
