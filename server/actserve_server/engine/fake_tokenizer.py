"""The tokenizer of the fake engine: a token is a byte, so a character may be split over several, as
with real tokenizers."""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

BYTES = 256
BOS, EOS, ROLE, END_OF_TURN = range(BYTES, BYTES + 4)
SPECIAL_TEXTS = {BOS: "<bos>", EOS: "<eos>", ROLE: "<|role|>", END_OF_TURN: "<|end|>"}
VOCABULARY_SIZE = BYTES + len(SPECIAL_TEXTS)
LONGEST_TOKEN = max(map(len, SPECIAL_TEXTS.values()))
ROLES = ("system", "user", "assistant", "tool")
THINKING = "enable_thinking"
"""The one argument of the fake chat template: whether the answer begins with a thought."""

_NOWHERE = TokenSource()


def tokenize(prompt: Prompt) -> TokenizedPrompt:
    """Text follows BOS, its special token. The turns of a conversation are rendered as ROLE, the
    role and a newline, what is said and the calls of tools, END_OF_TURN; tools as a turn of their
    own, before."""
    if isinstance(prompt, TokenPrompt):
        for token in prompt.ids:
            if token >= VOCABULARY_SIZE:
                raise ActserveError(
                    Reason.TOKEN_OUT_OF_RANGE, f"token id {token} is not below {VOCABULARY_SIZE}"
                )
        return TokenizedPrompt(prompt.ids, _texts(prompt.ids), origin=prompt)
    tokens = list(_tokens(prompt))
    ids, sources = tuple(token for token, _ in tokens), tuple(source for _, source in tokens)
    return TokenizedPrompt(ids, _texts(ids), sources, prompt)


def spell(word: str) -> Spellings:
    """See `Engine.spell`."""
    word = word.lstrip()
    return tuple(tuple(text.encode()) for text in (word, f" {word}") if word)


def decode(ids: Sequence[int]) -> str:
    """The text of tokens; incomplete characters become U+FFFD."""
    data = b"".join(
        bytes([token]) if token < BYTES else SPECIAL_TEXTS[token].encode() for token in ids
    )
    return data.decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the tokens of a fake engine are."""

    size: int
    longest: int
    """Characters of a prompt that one token can stand for at most."""
    end: int
    """The token that ends a text."""
    special: Container[int]
    """Tokens that are left out of generated text."""
    decode: Callable[[Sequence[int]], str]


BYTES_AS_TOKENS = Vocabulary(
    size=VOCABULARY_SIZE,
    longest=LONGEST_TOKEN,
    end=EOS,
    special=frozenset(SPECIAL_TEXTS),
    decode=decode,
)


def _tokens(prompt: TextPrompt | Conversation) -> Iterator[tuple[int, TokenSource]]:
    if isinstance(prompt, TextPrompt):
        if prompt.add_special_tokens:
            yield BOS, _NOWHERE
        yield from _said(prompt.text)
        return
    yield BOS, _NOWHERE
    _check_arguments(prompt.template_arguments)
    if prompt.tools:
        yield from _header("tools")
        yield from _written(list(prompt.tools))
        yield END_OF_TURN, _NOWHERE
    for index, turn in enumerate(prompt.turns):
        if turn.role not in ROLES:
            raise ActserveError(
                Reason.PROMPT_NOT_RENDERABLE,
                f"the chat template knows no role of that name; use one of {ROLES}",
            )
        yield from _header(turn.role)
        yield from _said(turn.text, index, turn.role)
        for call in turn.tool_calls:
            yield from _written({"name": call.name, "arguments": call.arguments})
        if not (prompt.continue_final_turn and index == len(prompt.turns) - 1):
            yield END_OF_TURN, _NOWHERE
    if prompt.add_generation_prompt:
        yield from _header("assistant")
        if prompt.template_arguments.get(THINKING, False):
            yield from _template("<think>")


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name != THINKING:
            raise ActserveError(
                Reason.PROMPT_NOT_RENDERABLE,
                f"the chat template does not name {name}; it names {THINKING}",
                field=("conversation", "template_arguments", name),
            )


def _header(role: str) -> Iterator[tuple[int, TokenSource]]:
    yield ROLE, _NOWHERE
    yield from _template(f"{role}\n")


def _written(value: Any) -> Iterator[tuple[int, TokenSource]]:
    return _template(json.dumps(value))


def _template(text: str) -> Iterator[tuple[int, TokenSource]]:
    for token in text.encode():
        yield token, _NOWHERE


def _said(text: str, turn: int | None = None, role: str = "") -> Iterator[tuple[int, TokenSource]]:
    for at, character in enumerate(text):
        for token in character.encode():
            yield token, TokenSource(start=at, end=at + 1, turn=turn, role=role)


def _texts(ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(decode([token]) for token in ids)
