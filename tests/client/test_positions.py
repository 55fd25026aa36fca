"""How positions become what travels."""

from typing import Any

import numpy as np
import pytest

import actserve
from actserve import ByCharacters, ByText, ByTokenId, ByTurn
from actserve.positions import positions_to_proto
from actserve.v1 import positions_pb2 as pb

SELECTORS: list[tuple[Any, pb.PositionSelector]] = [
    ("all", pb.PositionSelector(all=pb.AllPositions())),
    ("last", pb.PositionSelector(last=pb.LastPosition())),
    ("prompt", pb.PositionSelector(prompt=pb.PromptPositions())),
    ("generated", pb.PositionSelector(generated=pb.GeneratedPositions())),
    *(
        (listed, pb.PositionSelector(list=pb.PositionList(positions=[2, 0, -1])))
        for listed in ([2, 0, -1], (2, 0, -1), np.array([2, 0, -1]))
    ),
    *((one, pb.PositionSelector(list=pb.PositionList(positions=[3]))) for one in (3, np.int64(3))),
    (range(0, 5, 2), pb.PositionSelector(list=pb.PositionList(positions=[0, 2, 4]))),
    (slice(None), pb.PositionSelector(span=pb.PositionRange())),
    (slice(0, -1), pb.PositionSelector(span=pb.PositionRange(start=0, end=-1))),
    *(
        (ByTokenId(ids), pb.PositionSelector(token_ids=pb.TokenIdPositions(ids=[7])))
        for ids in (7, [7], np.array([7]), np.int64(7))
    ),
    (
        ByTokenId(range(2)),
        pb.PositionSelector(token_ids=pb.TokenIdPositions(ids=[0, 1])),
    ),
    (ByText(" France"), pb.PositionSelector(text=pb.TextPositions(text=" France"))),
    (
        ByText("é", occurrence=0, turn=0),
        pb.PositionSelector(text=pb.TextPositions(text="é", occurrence=0, turn=0)),
    ),
    (
        ByText("a", occurrence=-1, turn=-2),
        pb.PositionSelector(text=pb.TextPositions(text="a", occurrence=-1, turn=-2)),
    ),
    (
        ByCharacters(0, 5),
        pb.PositionSelector(characters=pb.CharacterPositions(start=0, end=5)),
    ),
    (
        ByCharacters(3, 4, turn=0),
        pb.PositionSelector(characters=pb.CharacterPositions(start=3, end=4, turn=0)),
    ),
    (ByTurn(), pb.PositionSelector(turns=pb.TurnPositions())),
    (ByTurn(-1), pb.PositionSelector(turns=pb.TurnPositions(turns=[-1]))),
    (ByTurn([0, 2]), pb.PositionSelector(turns=pb.TurnPositions(turns=[0, 2]))),
    (ByTurn(roles="user"), pb.PositionSelector(turns=pb.TurnPositions(roles=["user"]))),
    (
        ByTurn(0, ["system", "user"]),
        pb.PositionSelector(turns=pb.TurnPositions(turns=[0], roles=["system", "user"])),
    ),
]


@pytest.mark.parametrize(("positions", "selector"), SELECTORS, ids=lambda value: repr(value)[:40])
def test_each_form_of_positions_is_its_selector(
    positions: Any, selector: pb.PositionSelector
) -> None:
    proto = positions_to_proto(positions)
    assert proto == selector
    assert proto.WhichOneof("selection") == selector.WhichOneof("selection")


@pytest.mark.parametrize(
    "positions",
    [
        "first",
        "",
        [],
        [True, False],
        np.array([True]),
        np.array([[1]]),
        [1.0],
        1.5,
        None,
        slice(0, 4, 2),
        slice(0, 1.5),
        ["1"],
        2**31,
    ],
    ids=repr,
)
def test_what_is_no_position_is_refused(positions: Any) -> None:
    with pytest.raises(actserve.InvalidRequest, match="use 'all', 'last', 'prompt'"):
        positions_to_proto(positions)


REFUSED: dict[str, tuple[Any, tuple[Any, ...], str, str]] = {
    "no ids": (ByTokenId, ([],), "FIELD_REQUIRED", "name at least one"),
    "a negative id": (ByTokenId, (-1,), "TOKEN_OUT_OF_RANGE", "-1 is not a token id; use .* 0 to"),
    "an id beyond any": (ByTokenId, (2**32,), "TOKEN_OUT_OF_RANGE", "not a token id"),
    "a mask of ids": (ByTokenId, ([True],), "TOKEN_OUT_OF_RANGE", "True is not a token id"),
    "no text as an id": (ByTokenId, ("",), "TOKEN_OUT_OF_RANGE", "'' is not a token id"),
    "empty text": (ByText, ("",), "FIELD_REQUIRED", "not empty"),
    "an id as text": (ByText, (3,), "FIELD_REQUIRED", "3 is not a piece of text"),
    "half an occurrence": (ByText, ("a", 0.5), "FIELD_INVALID", "0.5 is not an occurrence"),
    "a role as turn of text": (ByText, ("a", 0, "user"), "TURN_OUT_OF_RANGE", "not a turn"),
    "no characters": (ByCharacters, (3, 3), "POSITION_OUT_OF_RANGE", "end must be above start"),
    "characters from the end": (ByCharacters, (-3, 2), "POSITION_OUT_OF_RANGE", "not a character"),
    "a role as turn": (ByCharacters, (0, 2, "user"), "TURN_OUT_OF_RANGE", "'user' is not a turn"),
    "a role among turns": (ByTurn, (["user"],), "TURN_OUT_OF_RANGE", "'user' is not a turn"),
    "no turn among turns": (ByTurn, ([None],), "TURN_OUT_OF_RANGE", "None is not a turn"),
    "a turn as role": (ByTurn, ((), [1]), "FIELD_INVALID", "1 is not a role"),
    "an empty role": (ByTurn, ((), [""]), "FIELD_INVALID", "'' is not a role"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_selector_that_selects_nothing_known_is_refused_where_it_is_made(case: str) -> None:
    make, arguments, reason, message = REFUSED[case]
    with pytest.raises(actserve.InvalidRequest, match=message) as caught:
        make(*arguments)
    assert caught.value.reason == reason


def test_a_selector_keeps_what_it_was_given() -> None:
    ids = [1, 2]
    selector = ByTokenId(ids)
    ids.append(3)
    assert selector == ByTokenId((1, 2))
    assert list(selector.to_proto().token_ids.ids) == [1, 2]
