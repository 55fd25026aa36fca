"""Checks: plain values, before they travel."""

import operator
from collections.abc import Iterator, Sequence, Sized
from typing import Any, SupportsFloat

import numpy as np

from actserve.errors import InvalidRequest

INT32 = range(-(2**31), 2**31)
UINT32 = range(2**32)

_PLAIN = (str, bytes, int, float, complex, range, slice, np.generic, type(None))
_MAX_CHARACTERS = 80
"""Of a value as a message shows it."""


def described(value: object) -> str:
    """A value as a message shows it: itself if it is plain and short, else its type and size.

    Arrays, and what holds arrays, would otherwise fill the screen and hide what is wrong.
    """
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    if isinstance(shape, tuple) and shape:
        return f"{kind} of shape {list(shape)}"
    parts = value if isinstance(value, list | tuple) else (value,)
    if all(isinstance(part, _PLAIN) for part in parts):
        text = repr(value)
        if len(text) <= _MAX_CHARACTERS:
            return text
        if isinstance(value, str | bytes):
            return f"{text[:_MAX_CHARACTERS]}... ({len(value)} long)"
    if isinstance(value, Sized):
        return f"{kind} of {len(value)}"
    return f"of type {kind}"


def number_of(count: int, noun: str) -> str:
    """So many of something, as a sentence says it: 1 cell, 2 cells."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def unicode(text: str, what: str, *path: str | int) -> str:
    """A text that can be sent. Raises `InvalidRequest`, which names `what` it is, for one with half
    of a surrogate pair, as broken decoding makes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{what} has {text[error.start]!r} at character {error.start}, which is half of a "
            "surrogate pair and no character; decode its bytes with errors='replace', or take it "
            "out",
            reason="FIELD_INVALID",
            path=path,
        ) from None
    return text


def integer(value: Any, what: str, allowed: range, reason: str, fix: str | None = None) -> int:
    """A whole number that is allowed. Raises `InvalidRequest`, which says `what` it should have
    been and how to `fix` it, for anything else."""
    # A list of booleans is a mask; read as numbers it would select 0 and 1.
    if is_index(value):
        number = operator.index(value)
        if number in allowed:
            return number
    fix = fix or f"use whole numbers from {allowed[0]} to {allowed[-1]}"
    raise InvalidRequest(f"{described(value)} is not {what}; {fix}", reason=reason)


def is_index(value: object) -> bool:
    """Whether this is a whole number, as an index is."""
    number: Any = value
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def several(values: Any) -> Sequence[Any]:
    """One value or several, as several; nothing is checked."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [*values]
    return values if isinstance(values, Sequence) and not isinstance(values, str) else [values]


def rereadable(values: Any) -> Any:
    """The same, but a tuple of what an iterator yields: each of many prompts reads it anew."""
    return tuple(values) if isinstance(values, Iterator) else values


def given(**options: Any) -> dict[str, Any]:
    """Options by name, each of which can be read anew."""
    return {name: rereadable(value) for name, value in options.items()}


def distinct(values: Any, what: str, allowed: range, reason: str) -> tuple[int, ...]:
    """One whole number or several, each once. Raises `InvalidRequest` as `integer` does."""
    numbers = tuple(integer(each, what, allowed, reason) for each in several(values))
    if len({*numbers}) < len(numbers):
        twice = next(each for each in numbers if numbers.count(each) > 1)
        raise InvalidRequest(f"{what} is named twice: {twice}; name it once", reason=reason)
    return numbers


def finite(value: object, what: str) -> float:
    """A number that is finite in float32. Raises `InvalidRequest` for anything else."""
    if not isinstance(value, SupportsFloat):
        raise InvalidRequest(
            f"the {what} is {described(value)}; it must be a number", reason="FIELD_INVALID"
        )
    number = float(value)
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise InvalidRequest(
            f"the {what} is {number}; it must be finite in float32", reason="TENSOR_NOT_FINITE"
        )
    return number
