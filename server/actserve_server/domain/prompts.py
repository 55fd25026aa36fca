"""Prompts: text, token ids or a conversation, and what they become."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text, tokenized with the model's special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, oldest first, rendered by the model's own chat template."""

    turns: tuple[Turn, ...]
    add_generation_prompt: bool = True


Prompt = TextPrompt | TokenPrompt | Conversation

Spellings = tuple[tuple[int, ...], ...]
"""The sequences of token ids that stand for a word; none if the tokenizer makes nothing of it."""


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where a token comes from: characters [start, end) of a text prompt, or of what a turn says.

    All None (and an empty role) for special tokens and for the chat template's own. Characters are
    Unicode code points, as Python indexes strings. Tokens that share a character overlap.
    """

    start: int | None = None
    end: int | None = None
    turn: int | None = None
    role: str = ""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model sees it.

    `texts` holds each token decoded alone; `sources` has an entry a token, or none at all for a
    prompt of token ids and where the tokenizer does not tell. `origin` is what was tokenized; None
    counts as token ids.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    sources: tuple[TokenSource, ...] = ()
    origin: Prompt | None = None

    @property
    def contents(self) -> tuple[str, ...]:
        """What the caller wrote: the text, or what each turn says; nothing for token ids."""
        match self.origin:
            case TextPrompt(text):
                return (text,)
            case Conversation(turns):
                return tuple(turn.content for turn in turns)
            case _:
                return ()

    @cached_property
    def extents(self) -> np.ndarray:
        """`sources` as int64 [tokens, 3]: index into `contents`, start and end. Zeros, which is no
        character, for a token without a source."""
        return np.array(
            [(source.turn or 0, source.start or 0, source.end or 0) for source in self.sources],
            np.int64,
        ).reshape(-1, 3)
