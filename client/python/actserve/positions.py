"""Positions: which tokens of a sequence a capture or an intervention covers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import INT32, UINT32, described, integer, several, unicode
from actserve.errors import InvalidRequest
from actserve.tokens import TOKENS, TokenLike, checked_token, token_id
from actserve.v1 import positions_pb2 as pb


@dataclass(frozen=True, slots=True)
class ByTokenId:
    """Every token with this id, or one of these, in the prompt and generated. A text, such as
    `" Paris"`, stands for the token that it is."""

    ids: TokenLike | Sequence[TokenLike] | NDArray[np.integer] = field(metadata=TOKENS)

    def __post_init__(self) -> None:
        ids = tuple(checked_token(each) for each in several(self.ids))
        if not ids:
            raise InvalidRequest(
                "the list of token ids is empty; name at least one", reason="FIELD_REQUIRED"
            )
        object.__setattr__(self, "ids", ids)

    def to_proto(self) -> pb.PositionSelector:
        """The selector as the contract writes it."""
        ids = [token_id(each) for each in several(self.ids)]
        return pb.PositionSelector(token_ids=pb.TokenIdPositions(ids=ids))


@dataclass(frozen=True, slots=True)
class ByText:
    """Every prompt token that overlaps a piece of text, which is matched exactly: in the text of a
    text prompt, or in what the turns of a conversation say.

    `occurrence` picks one occurrence, from zero, or from the last when negative; every one when
    None. `turn` picks the turn of a conversation, alike. A prompt without the text is an
    `InvalidRequest`.
    """

    text: str
    occurrence: int | None = None
    turn: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise InvalidRequest(
                f"{described(self.text)} is not a piece of text; give a string that is not empty",
                reason="FIELD_REQUIRED",
            )
        unicode(self.text, "the text of positions", "positions", "text")
        if self.occurrence is not None:
            integer(self.occurrence, "an occurrence", INT32, "FIELD_INVALID")
        if self.turn is not None:
            _turn(self.turn)

    def to_proto(self) -> pb.PositionSelector:
        """The selector as the contract writes it."""
        return pb.PositionSelector(
            text=pb.TextPositions(text=self.text, occurrence=self.occurrence, turn=self.turn)
        )


@dataclass(frozen=True, slots=True)
class ByCharacters:
    """Every prompt token that overlaps characters [start, end) of a text prompt, or of what turn
    `turn` of a conversation says; negative turns count from the last.

    Characters are those of a Python string: `text[start:end]`.
    """

    start: int
    end: int
    turn: int | None = None

    def __post_init__(self) -> None:
        start, end = (
            integer(bound, "a character", UINT32, "POSITION_OUT_OF_RANGE")
            for bound in (self.start, self.end)
        )
        if start >= end:
            raise InvalidRequest(
                f"characters [{start}, {end}) are none; end must be above start",
                reason="POSITION_OUT_OF_RANGE",
            )
        if self.turn is not None:
            _turn(self.turn)

    def to_proto(self) -> pb.PositionSelector:
        """The selector as the contract writes it."""
        return pb.PositionSelector(
            characters=pb.CharacterPositions(start=self.start, end=self.end, turn=self.turn)
        )


@dataclass(frozen=True, slots=True)
class ByTurn:
    """What turns of a conversation say, without the chat template's own tokens: the turns with one
    of these numbers and one of these roles, where empty means any.

    Negative turns count from the last of the prompt. Generated tokens belong to the turn that the
    generation prompt opens: one past the last, of role "assistant".
    """

    turns: SupportsIndex | Sequence[SupportsIndex] = ()
    roles: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        turns = tuple(_turn(turn) for turn in several(self.turns))
        roles = (self.roles,) if isinstance(self.roles, str) else tuple(self.roles)
        if wrong := [role for role in roles if not isinstance(role, str) or not role]:
            raise InvalidRequest(
                f"{described(wrong[0])} is not a role; use those of the conversation, such as "
                "'user'",
                reason="FIELD_INVALID",
            )
        for role in roles:
            unicode(role, "a role of positions", "positions", "roles")
        object.__setattr__(self, "turns", turns)
        object.__setattr__(self, "roles", roles)

    def to_proto(self) -> pb.PositionSelector:
        """The selector as the contract writes it."""
        turns = [int(turn) for turn in several(self.turns)]
        return pb.PositionSelector(turns=pb.TurnPositions(turns=turns, roles=self.roles))


Positions: TypeAlias = (
    Literal["all", "last", "prompt", "generated"]
    | str
    | SupportsIndex
    | slice
    | range
    | Sequence[SupportsIndex]
    | NDArray[np.integer]
    | ByTokenId
    | ByText
    | ByCharacters
    | ByTurn
)
"""Zero-based token positions over prompt and generated tokens together.

- `"all"`, `"prompt"`, `"generated"`: those tokens; `"last"`: the last prompt token;
- a text, as on a command line: `"3"`, `"0,3,-1"`, `"2:8"`, `":-1"`, `"text:France"`;
- an int, a list of ints or a `range`: exactly these, an error if one does not exist;
- a `slice` of step 1: from start up to, not including, stop, cut to what exists;
- `ByTokenId`, `ByText`, `ByCharacters`, `ByTurn`: the tokens that are, or say, something.

Negative values count from the end of the prompt: -1 is the last prompt token. The last generated
token never runs through the model and so has no activations.
"""

_NAMED = {
    "all": pb.PositionSelector(all=pb.AllPositions()),
    "last": pb.PositionSelector(last=pb.LastPosition()),
    "prompt": pb.PositionSelector(prompt=pb.PromptPositions()),
    "generated": pb.PositionSelector(generated=pb.GeneratedPositions()),
}

_FIX = (
    "use 'all', 'last', 'prompt', 'generated', a text such as '3', '0,-1', '2:8' or 'text:France', "
    "an int, a list of ints, a range, a slice of step 1 or one of ByTokenId, ByText, ByCharacters "
    "and ByTurn"
)


def positions_to_proto(positions: Positions) -> pb.PositionSelector:
    """The selector of some positions. Raises `InvalidRequest` if it cannot be one."""
    if isinstance(positions, ByTokenId | ByText | ByCharacters | ByTurn):
        return positions.to_proto()
    if isinstance(positions, str):
        return _NAMED[positions] if positions in _NAMED else positions_to_proto(parsed(positions))
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise _invalid(f"a slice of step {positions.step} is not supported; list the positions")
        bounds = {"start": positions.start, "end": positions.stop}
        return pb.PositionSelector(
            span=pb.PositionRange(
                **{side: _index(value) for side, value in bounds.items() if value is not None}
            )
        )
    listed = [_index(position) for position in several(positions)]
    if not listed:
        raise _invalid("the list of positions is empty; name at least one")
    return pb.PositionSelector(list=pb.PositionList(positions=listed))


def parsed(text: str) -> Positions:
    """What positions are that are written as a text. Raises `InvalidRequest`."""
    if text in _NAMED:
        return text
    if text.startswith(_TEXT):
        piece = text.removeprefix(_TEXT)
        if not piece:
            raise _invalid(f"the text after {_TEXT!r} must be not empty, as in 'text:France'")
        return ByText(piece)
    if re.fullmatch(rf"({_NUMBER})?:({_NUMBER})?", text):
        start, stop = (int(bound) if bound else None for bound in text.split(":"))
        return slice(start, stop)
    if re.fullmatch(rf"{_NUMBER}(,{_NUMBER})*", text):
        return [int(position) for position in text.split(",")]
    raise _invalid(f"positions {described(text)} do not exist")


_TEXT = "text:"
_NUMBER = "(?:0|-?[1-9][0-9]{0,9})"


def check_positions(positions: Positions) -> None:
    """Raises `InvalidRequest` if it cannot be positions."""
    if not isinstance(positions, ByTokenId):  # Its texts are looked up later.
        positions_to_proto(positions)


def _index(value: object) -> int:
    return integer(value, "a position", INT32, "POSITION_OUT_OF_RANGE", _FIX)


def _turn(value: object) -> int:
    return integer(value, "a turn", INT32, "TURN_OUT_OF_RANGE")


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"{problem}; {_FIX}", reason="POSITION_OUT_OF_RANGE")
