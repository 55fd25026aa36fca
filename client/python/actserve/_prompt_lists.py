"""Lists of prompts, and what may be given for each prompt of a list: its steering, its positions.

What is given once is for all prompts. A list that holds lists, or anything else that is not part of
one value, has one value for each prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from actserve._checks import is_index
from actserve.errors import ActserveError, InvalidRequest, at_item

T = TypeVar("T")

OnError: TypeAlias = Literal["raise", "return"]
"""What becomes of a prompt that is refused or fails: its error is raised, or stands in the list in
the place of its result."""


def check_on_error(on_error: object) -> bool:
    """Whether errors are returned. Raises `InvalidRequest` for anything else."""
    if on_error not in ("raise", "return"):
        raise InvalidRequest(
            f"on_error is {on_error!r}; use 'raise' or 'return'",
            reason="FIELD_INVALID",
            path=("on_error",),
        )
    return on_error == "return"


def intervene_of_each(intervene: Any, prompts: int | None) -> Sequence[Any] | None:
    """The steering of each of so many prompts, if a list has some for each: a list of lists, in
    which None is none. Raises `InvalidRequest` for a list that could be read either way."""
    if not isinstance(intervene, list | tuple) or not intervene:
        return None
    of_each = [each is None or isinstance(each, list | tuple) for each in intervene]
    if all(of_each):
        return [() if each is None else each for each in intervene]
    if any(of_each):
        raise InvalidRequest(
            "intervene has interventions beside lists or None; give each prompt a list of its own, "
            "as in intervene=[[a], [b, c], []]",
            reason="FIELD_INVALID",
            path=("intervene",),
        )
    if isinstance(intervene, list) and prompts == len(intervene) > 1:
        raise InvalidRequest(
            f"intervene is a list of {prompts} interventions for {prompts} prompts; write "
            "intervene=[[a], [b]] to give each prompt its own, or a tuple, intervene=(a, b), to "
            "apply all of them to every prompt",
            reason="FIELD_INVALID",
            path=("intervene",),
        )
    return None


def positions_of_each(positions: Any) -> Sequence[Any] | None:
    """The positions of each prompt, if a list has some for each: one of which not all are ints."""
    if isinstance(positions, list | tuple) and not all(map(is_index, positions)):
        return positions
    return None


def check_count(given: Sequence[Any] | None, prompts: int, name: str) -> None:
    """Raises `InvalidRequest` unless there is one for each prompt."""
    if given is not None and len(given) != prompts:
        raise InvalidRequest(
            f"{name} has {len(given)} items for {prompts} prompts; give one for each, or one for "
            "all",
            reason="FIELD_INVALID",
            path=(name,),
        )


def of_prompt(given: Sequence[Any] | None, index: int, name: str) -> Any:
    """What is given for the prompt at this index; None where nothing is given for each."""
    if given is None:
        return None
    if index >= len(given):
        raise InvalidRequest(
            f"{name} has {len(given)} items, but there are more prompts; give one for each",
            reason="FIELD_INVALID",
            path=(name,),
        )
    return given[index]


def at_prompt(make: Callable[[], T], index: int | None, *, returns: bool = False) -> Any:
    """What is made of the prompt at this index of the caller's list, None where there is no list.
    An error names it, and is raised or returned."""
    try:
        with at_item(index):
            return make()
    except ActserveError as error:
        if returns:
            return error
        raise
