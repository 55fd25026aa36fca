"""Tokens: named by id, or by their text where it is a single token of the model."""

import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex, TypeAlias

from actserve._checks import UINT32, integer, several
from actserve.errors import InvalidRequest

TokenLike: TypeAlias = SupportsIndex | str
"""A token: its id, or its text, such as `" Paris"` with its space. A text is looked up when the
call is made, and refused with its pieces if it is not one token."""

TOKEN = "token"
TOKENS: Mapping[str, Any] = {TOKEN: True}
"""The metadata of a dataclass's field that holds tokens, in which a string is the text of one."""


def checked_token(value: object) -> int | str:
    """An id that can be one, or a text. Raises `InvalidRequest` for anything else."""
    if isinstance(value, str) and value:
        return value
    fix = f"use whole numbers from 0 to {UINT32[-1]}, or the text of a token, such as ' Paris'"
    return integer(value, "a token id", UINT32, "TOKEN_OUT_OF_RANGE", fix)


def checked_tokens(values: Any) -> tuple[int | str, ...]:
    """One token or several, each once. Raises `InvalidRequest` for anything else."""
    tokens = tuple(checked_token(each) for each in several(values))
    if len({*tokens}) < len(tokens):
        twice = next(each for each in tokens if tokens.count(each) > 1)
        raise InvalidRequest(
            f"a token id is named twice: {twice!r}; name it once", reason="TOKEN_OUT_OF_RANGE"
        )
    return tokens


def token_id(token: Any) -> int:
    """The id of a token that was looked up."""
    if isinstance(token, str):
        raise InvalidRequest(
            f"{token!r} is the text of a token, which a client looks up; give its id",
            reason="TOKEN_OUT_OF_RANGE",
        )
    return operator.index(token)
