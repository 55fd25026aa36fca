"""Prompts: text, token ids or a conversation, and what they become."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text, tokenized with the model's special tokens around it unless told otherwise."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text, as a part of what a turn says."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. Its content is a text, parts, or nothing, as of a turn that only
    calls tools. `tool_call_id` and `name` are left out where they are empty."""

    role: str
    content: str | tuple[TextPart, ...] | None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """What the turn says, in which its characters are counted."""
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, oldest first, rendered by the model's own chat template.

    `tools` are JSON objects, and `template_arguments` JSON values by name; nobody changes either.
    With `continue_final_turn` the last turn is left open for the model to go on with.
    """

    turns: tuple[Turn, ...]
    add_generation_prompt: bool = True
    continue_final_turn: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer_turn(self) -> int:
        """The turn that generated tokens belong to: the last, if it is left open, or one more."""
        return len(self.turns) - self.continue_final_turn


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
            case TextPrompt(text=text):
                return (text,)
            case Conversation(turns):
                return tuple(turn.text for turn in turns)
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
