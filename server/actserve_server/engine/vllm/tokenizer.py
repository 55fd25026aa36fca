"""Prompts to token ids, and ids to text, with the served model's own tokenizer."""

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.prompts import (
    Conversation,
    Prompt,
    Spellings,
    TextPrompt,
    TokenizedPrompt,
    TokenPrompt,
    TokenSource,
)
from actserve_server.engine.fair_threads import FairThreads
from actserve_server.engine.vllm.chat import Chat
from actserve_server.engine.vllm.offsets import OffsetEncoder
from actserve_server.engine.vllm.sources import conversation_sources, locate, text_sources


class PromptTokenizer:
    """Wraps a Hugging Face tokenizer. Works in one thread of its own, in which callers take turns:
    tokenizers release the GIL, a long prompt must not hold up the event loop, and they do not allow
    concurrent use."""

    def __init__(self, tokenizer: Any, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._thread = FairThreads(1, 1, "actserve-tokenizer")
        self._text = lru_cache(maxsize=1 << 16)(self._decode_one)
        self._encoder = OffsetEncoder(tokenizer)

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        return await self._thread.run(self._tokenize, prompt)

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        """See `Engine.spell`."""
        return await self._thread.run(self._spell, words)

    def texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token decoded alone."""
        return tuple(map(self._text, ids))

    def ended_text(
        self, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]
    ) -> str:
        """See `Engine.ended_text`: as vLLM makes text of these tokens."""
        request = SimpleNamespace(
            request_id="ended",
            prompt_token_ids=[*prompt],
            prompt_embeds=None,
            sampling_params=params,
        )
        text = IncrementalDetokenizer.from_new_request(self._tokenizer, request)  # type: ignore[arg-type]
        text.update([*generated], stop_terminated=False)
        return text.get_next_output_text(finished=True, delta=False)

    def close(self) -> None:
        self._thread.close()

    def _tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        match prompt:
            case TextPrompt(text, special):
                ids, spans = self._encoder.encode(text, add_special_tokens=special)
                sources = text_sources(spans)
            case TokenPrompt(ids):
                sources = ()
            case Conversation():
                chat = Chat(self._tokenizer, prompt)
                ids = chat.ids()
                sources = self._sources(chat, ids) if self._encoder.has_offsets else ()
        # Of text too: a tokenizer may know tokens that the model has no embedding for, and
        # vLLM's worker would die of one.
        self._check(ids)
        return TokenizedPrompt(ids, self.texts(ids), sources, prompt)

    def _spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        def ids(text: str) -> tuple[int, ...]:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))

        def spellings(word: str) -> Spellings:
            # A tokenizer may drop what it does not know, and leave the space alone.
            alone = ids(word)
            return (alone, ids(f" {word}")) if alone else ()

        return tuple(spellings(word.lstrip()) for word in words)

    def _sources(self, chat: Chat, ids: tuple[int, ...]) -> tuple[TokenSource, ...]:
        """The sources of a rendered conversation's ids."""
        rendered = chat.text([piece.text for piece in chat.pieces])
        # The BOS is in the rendered text where the template wants one.
        same_ids, spans = self._encoder.encode(rendered, add_special_tokens=False)
        if same_ids != ids:
            return ()
        try:
            passages = locate(chat.pieces, rendered, chat.text)
        except Exception:
            # The template refuses a conversation with marks in it, and this one is not to blame.
            passages = []
        return conversation_sources(spans, passages, chat.conversation.turns)

    def _check(self, ids: Sequence[int]) -> None:
        for index, token in enumerate(ids):
            if not 0 <= token < self._vocabulary_size:
                raise ActserveError(
                    Reason.TOKEN_OUT_OF_RANGE,
                    f"token id {token} at index {index} is out of range; this model's ids are 0 to "
                    f"{self._vocabulary_size - 1}",
                    metadata={"token_id": token, "vocabulary_size": self._vocabulary_size},
                )

    def _decode_one(self, token: int) -> str:
        return self._tokenizer.decode([token])
