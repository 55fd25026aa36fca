"""Prompts: text, token ids or a conversation, and what they become."""

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt as the model sees it; `texts` holds each token decoded alone."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
