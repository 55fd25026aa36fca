"""Jobs: a public method's arguments as calls, and the calls' results as its return value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from actserve._calls import Call
from actserve.errors import (
    ActserveError,
    Cancelled,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """One call of a job: what it holds of the caller's list of prompts, rows or texts."""

    call: Callable[[], Call[T]] | None
    """Makes the call when its turn comes: thousands of requests waiting with a copy of the same
    steering vector each would fill memory. Made again, it is the same call. None where there is
    nothing to ask."""
    first: int | None
    """Where its prompts begin in the caller's list; None when the caller gave one prompt, or
    none."""
    items: int = 1
    failed: Callable[[ActserveError], T] | None = None
    """What stands for the result where the prompt is to blame; None raises."""
    answer: Any = None
    """The result where there is nothing to ask."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """Everything one public method does."""

    name: str
    parts: Sequence[Part[T]]
    in_flight: int
    """How many calls may run at once."""
    combine: Callable[[list[T]], Any]

    @property
    def items(self) -> int:
        return sum(part.items for part in self.parts)


def only(name: str, call: Callable[[], Call[T]]) -> Job[T]:
    """A job of one call, whose result is its own."""
    return Job(name, [Part(call, None)], 1, lambda results: results[0])


def is_of_one_prompt(error: ActserveError) -> bool:
    """Whether an error of a call with one prompt is about that prompt. A server that cannot be
    reached, or a caller who may not call, is the same for all."""
    return not isinstance(error, Unavailable | Unauthenticated | PermissionDenied | Cancelled)
