"""A served OpenAI door without a model: vLLM's serving classes, with a tokenizer that is the fake
engine's, in front of the fake engine; and clients of it."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.renderers import renderer_from_config

from actserve_server.domain.prompts import Conversation, Turn
from actserve_server.engine import fake_tokenizer
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.fake_tokenizer import BOS, SPECIAL_TEXTS, VOCABULARY_SIZE
from actserve_server.engine.vllm.startup import prepare_environment
from tests.contract.harness import Served, serving

MODEL = "fake"

_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}<|role|>tools\n{{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}"
    "<|role|>{{ message.role }}\n{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|role|>assistant\n{% endif %}"
)
"""As the fake tokenizer renders conversations."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """A server and a client of its OpenAI door."""

    served: Served
    client: openai.AsyncOpenAI

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def as_caller(self, token: str) -> openai.AsyncOpenAI:
        return self.client.with_options(api_key=token)

    async def chat(self, content: str = "hello", **fields: Any) -> Any:
        """A small greedy chat that tells its tokens, of one message unless told others; what
        actserve is asked is in `extra`."""
        return await self.client.chat.completions.create(**_chat(content, **fields))

    async def stream(self, content: str = "hello", **fields: Any) -> list[Any]:
        """The parts of the same as a stream."""
        parts = await self.client.chat.completions.create(**_chat(content, **fields), stream=True)
        return [part async for part in parts]

    async def complete(self, prompt: Any = "hello", **fields: Any) -> Any:
        extra = {"return_token_ids": True, **fields.pop("extra", {})}
        given = {"model": MODEL, "max_tokens": 5, "temperature": 0, **fields}
        return await self.client.completions.create(prompt=prompt, **given, extra_body=extra)


def _chat(content: str, **fields: Any) -> dict[str, Any]:
    extra = {"return_token_ids": True, **fields.pop("extra", {})}
    messages = [{"role": "user", "content": content}]
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 5,
        "temperature": 0,
        **fields,
        "extra_body": extra,
    }


@asynccontextmanager
async def door(engine: FakeEngine | None = None, **settings: Any) -> AsyncIterator[Door]:
    """Serves one."""
    engine = with_vllm(engine or FakeEngine())
    async with serving(engine, http_port=0, **settings) as served:
        assert served.app.http is not None
        url = f"http://127.0.0.1:{served.app.http.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield Door(served=served, client=client)


def conversation(*contents: str) -> dict[str, Any]:
    """The prompt of a call to Generate that is the same conversation."""
    return {"conversation": {"turns": [{"role": "user", "content": each} for each in contents]}}


def with_vllm(engine: FakeEngine) -> Any:
    """The engine with what vLLM's serving classes take from one. Its renderer has an event loop of
    its own: the current one."""
    config = _made_up_config()
    engine.vllm = SimpleNamespace(  # type: ignore[attr-defined]
        vllm_config=config,
        model_config=config.model_config,
        renderer=renderer_from_config(config),
        input_processor=None,
    )
    return engine


@functools.cache
def _made_up_config() -> VllmConfig:
    """Of a model that is nowhere, with a tokenizer."""
    prepare_environment()
    folder = tempfile.mkdtemp(prefix="actserve-made-up-")
    atexit.register(shutil.rmtree, folder)
    _write_model(Path(folder))
    config = AsyncEngineArgs(
        model=folder, dtype="float32", max_model_len=2048, kv_cache_memory_bytes=1 << 20
    ).create_engine_config()
    ids = (
        renderer_from_config(config)
        .get_tokenizer()
        .apply_chat_template(
            [{"role": "user", "content": "hé"}], add_generation_prompt=True, return_dict=False
        )
    )
    assert tuple(ids) == fake_tokenizer.tokenize(Conversation((Turn("user", "hé"),))).ids
    return config


def _write_model(folder: Path) -> None:
    """The configuration and tokenizer of a model whose tokens are those of the fake engine."""
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens([SPECIAL_TEXTS[token] for token in sorted(SPECIAL_TEXTS)])
    bos = SPECIAL_TEXTS[BOS]
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", special_tokens=[(bos, BOS)]
    )
    assert made.get_vocab_size() == VOCABULARY_SIZE
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token="<eos>", chat_template=_TEMPLATE
    ).save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=BOS,
        eos_token_id=fake_tokenizer.EOS,
    ).save_pretrained(folder)
