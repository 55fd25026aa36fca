"""Prompts: text, token ids or a conversation; and how one prompt is told from many.

| given | means |
|---|---|
| a string | one prompt of text |
| a list of ints, an integer array | one prompt of token ids |
| a list of {"role", "content"} mappings, a `Conversation` | one conversation |
| a mapping with `messages`, as chat libraries have it | one conversation, see `Conversation.of` |
| a list of anything above | many prompts; the empty list is many, none of them |
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from actserve._checks import unicode
from actserve.conversations import Conversation, Turn
from actserve.errors import InvalidRequest
from actserve.v1 import prompt_pb2

Prompt: TypeAlias = (
    str
    | Sequence[int]
    | NDArray[np.integer]
    | Sequence[Turn]
    | Mapping[str, Sequence[Turn]]
    | Conversation
)
"""One prompt."""

P = TypeVar("P", bound=Prompt)
Prompts: TypeAlias = list[P] | tuple[P, ...]
"""Many prompts."""


def is_many(prompts: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt."""
    if isinstance(prompts, str | bytes | Conversation | Mapping) or not isinstance(
        prompts, Sequence
    ):
        return False
    return not prompts or not (_all_ints(prompts) or _all_turns(prompts))


def prompt_to_proto(prompt: Any) -> prompt_pb2.Prompt:
    """One prompt as the contract writes it. Raises `InvalidRequest` if it is not one."""
    if isinstance(prompt, str):
        return prompt_pb2.Prompt(text=unicode(prompt, "the prompt", "prompt", "text"))
    if isinstance(prompt, Mapping) and "messages" in prompt:
        prompt = Conversation.of(prompt)
    if isinstance(prompt, Conversation):
        return prompt_pb2.Prompt(conversation=prompt.to_proto())
    if hasattr(prompt, "__array__"):
        prompt = np.asarray(prompt)
        if prompt.ndim == 1 and prompt.dtype.kind in "iu":
            return _token_ids(prompt.tolist())
    elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        if _all_turns(prompt):
            return prompt_pb2.Prompt(conversation=Conversation(prompt).to_proto())
        if _all_ints(prompt):
            return _token_ids([int(token) for token in prompt])
    raise InvalidRequest(
        f"{_describe(prompt)} is not a prompt; give a string, a list of token ids, a list of "
        "{'role', 'content'} turns, a mapping with 'messages' or an actserve.Conversation",
        reason="FIELD_INVALID",
        path=("prompt",),
    )


def _all_ints(items: Sequence[Any]) -> bool:
    return all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in items)


def _all_turns(items: Sequence[Any]) -> bool:
    return bool(items) and all(
        isinstance(item, Mapping) and "messages" not in item for item in items
    )


def _token_ids(ids: list[int]) -> prompt_pb2.Prompt:
    if beyond := next((token for token in ids if not 0 <= token < 2**32), None):
        raise InvalidRequest(
            f"token id {beyond} does not exist; ids are at least 0 and below the model's "
            "vocabulary size",
            reason="TOKEN_OUT_OF_RANGE",
            path=("prompt",),
        )
    return prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=ids))


def _describe(prompt: Any) -> str:
    kinds = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) else ()
    items = sorted({type(item).__name__ for item in kinds})
    return type(prompt).__name__ + (f" of {' and '.join(items)}" if items else "")
