"""The prompt tokens that hold a passage: a piece of text, some characters, some turns.

What a caller wrote is one text (a text prompt) or several (what the turns of a conversation say). A
passage is a set of their characters, and a token is in it when the token's source holds one of
them. Work is linear in characters and tokens. Messages quote the selector and never the prompt.
"""

from collections.abc import Iterable, Iterator
from typing import NoReturn

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.prompts import Conversation, TokenizedPrompt

QUOTED_CHARACTERS = 60
"""Of a caller's text, in a message."""

INSTEAD = "select by position or by token id"


def of_text(
    prompt: TokenizedPrompt, text: str, occurrence: int | None, turn: int | None, field: FieldPath
) -> np.ndarray:
    """The tokens of one occurrence, or of all, as ascending positions, int64.

    Occurrences do not overlap: they are found from left to right, in the order of the turns.
    """
    indices = _searched(prompt, turn, field)
    if not text:
        _refuse(Reason.FIELD_REQUIRED, "the text is empty; name the text to select", field)
    found = [
        (index, start, start + len(text))
        for index in indices
        for start in _occurrences(text, prompt.contents[index])
    ]
    quoted = repr(text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "...")
    if not found:
        where = "the prompt" if turn is None else f"turn {turn}"
        _refuse(
            Reason.TEXT_NOT_FOUND,
            f"{where} does not contain the text {quoted}; it is matched exactly, with case and "
            "spaces, and not in what the chat template adds",
            field,
        )
    if occurrence is not None:
        if not -len(found) <= occurrence < len(found):
            _refuse(
                Reason.TEXT_NOT_FOUND,
                f"occurrence {occurrence} is out of range; the text {quoted} occurs "
                f"{len(found)} times, counted from 0, and from -1 backwards",
                field,
                occurrence=occurrence,
                occurrences=len(found),
            )
        found = [found[occurrence]]
    _check_located(prompt, {index for index, _, _ in found}, field)
    positions = _holding(prompt, found)
    if not len(positions):
        _refuse(
            Reason.TEXT_NOT_FOUND,
            f"no token holds the text {quoted}: the chat template leaves it out; {INSTEAD}",
            field,
        )
    return positions


def of_characters(
    prompt: TokenizedPrompt, start: int, end: int, turn: int | None, field: FieldPath
) -> np.ndarray:
    """The tokens of characters [start, end), as ascending positions, int64."""
    indices = _searched(prompt, turn, field)
    if turn is None and isinstance(prompt.origin, Conversation):
        _refuse(
            Reason.FIELD_INVALID,
            "characters are counted within a turn of this conversation; name the turn",
            field,
        )
    (index,) = indices
    length = len(prompt.contents[index])
    of = "the text" if turn is None else f"turn {turn}"
    if not 0 <= start < end <= length:
        _refuse(
            Reason.POSITION_OUT_OF_RANGE,
            f"characters [{start}, {end}) are out of range; {of} has {length} characters, and the "
            "end lies after the start",
            field,
            characters=length,
        )
    _check_located(prompt, indices, field)
    positions = _holding(prompt, [(index, start, end)])
    if not len(positions):
        _refuse(
            Reason.POSITION_OUT_OF_RANGE,
            f"no token holds characters [{start}, {end}) of {of}: the chat template or the "
            f"tokenizer leaves them out; {INSTEAD}",
            field,
        )
    return positions


def of_turns(
    prompt: TokenizedPrompt, turns: tuple[int, ...], roles: tuple[str, ...], field: FieldPath
) -> tuple[np.ndarray, bool]:
    """The tokens of what some turns say, as ascending positions, int64, and whether the turn that
    generated tokens belong to, of role "assistant", is among them."""
    if not isinstance(prompt.origin, Conversation):
        _refuse(
            Reason.FIELD_INVALID,
            f"turns are selected, but the prompt is no conversation; send one, or {INSTEAD}",
            field,
        )
    count, answer = len(prompt.origin.turns), prompt.origin.answer_turn
    for turn in turns:
        if not -count <= turn < count and turn != answer:
            _refuse_turn(turn, count, f", and {answer} for generated tokens", field)
    wanted = {turn + count if turn < 0 else turn for turn in turns}

    def matches(turn: int, role: str) -> bool:
        return (not turns or turn in wanted) and (not roles or role in roles)

    indices = [i for i, turn in enumerate(prompt.origin.turns) if matches(i, turn.role)]
    _check_located(prompt, indices, field)
    index, start, end = prompt.extents.T
    return np.flatnonzero(np.isin(index, indices) & (start < end)), matches(answer, "assistant")


def _searched(prompt: TokenizedPrompt, turn: int | None, field: FieldPath) -> range:
    """The indices of `contents` that a selector with this turn looks at."""
    if not prompt.contents:
        _refuse(
            Reason.FIELD_INVALID,
            "text is selected, but the prompt is token ids, which come without; "
            f"{INSTEAD}, or send text or a conversation",
            field,
        )
    count = len(prompt.contents)
    if turn is None:
        return range(count)
    if not isinstance(prompt.origin, Conversation):
        _refuse(
            Reason.FIELD_INVALID,
            f"turn {turn} is named, but the prompt is a text; leave the turn unset",
            field,
        )
    if not -count <= turn < count:
        _refuse_turn(turn, count, "", field)
    index = turn + count if turn < 0 else turn
    return range(index, index + 1)


def _occurrences(text: str, content: str) -> Iterator[int]:
    start = content.find(text)
    while start >= 0:
        yield start
        start = content.find(text, start + len(text))


def _holding(prompt: TokenizedPrompt, characters: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """The positions of tokens that overlap [start, end) of `contents[index]`, for any of them."""
    offsets = np.cumsum([0, *map(len, prompt.contents)])
    wanted = np.zeros(offsets[-1], bool)
    for index, start, end in characters:
        wanted[offsets[index] + start : offsets[index] + end] = True
    # A token overlaps when the number of wanted characters before its end is higher than before
    # its start, which supposes no order of tokens and holds none for an empty source.
    before = np.concatenate(([0], np.cumsum(wanted)))
    index, start, end = prompt.extents.T
    return np.flatnonzero(before[offsets[index] + end] > before[offsets[index] + start])


def _check_located(prompt: TokenizedPrompt, indices: Iterable[int], field: FieldPath) -> None:
    """Raises if it is not known which tokens hold one of the `contents`."""
    index, start, end = prompt.extents.T
    located = set(index[start < end].tolist())
    for wanted in indices:
        # A template may drop blanks, which then have no tokens rather than unknown ones.
        if wanted in located or not prompt.contents[wanted].strip():
            continue
        if not prompt.sources:
            _refuse(
                Reason.FIELD_INVALID,
                "it is not known which characters the tokens of this prompt hold: this model's "
                f"tokenizer does not say; {INSTEAD}",
                field,
            )
        _refuse(
            Reason.FIELD_INVALID,
            f"it is not known which tokens hold what turn {wanted} says: the chat template does "
            f"not render it as it is written; {INSTEAD}",
            field,
        )


def _refuse_turn(turn: int, count: int, also: str, field: FieldPath) -> NoReturn:
    _refuse(
        Reason.TURN_OUT_OF_RANGE,
        f"turn {turn} is out of range; the conversation has {count} turns: use {-count} to "
        f"{count - 1}{also}",
        field,
        turn=turn,
        turns=count,
    )


def _refuse(reason: Reason, message: str, field: FieldPath, **metadata: object) -> NoReturn:
    raise ActserveError(reason, message, field=field, metadata=metadata)
