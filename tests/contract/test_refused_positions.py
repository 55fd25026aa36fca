"""Refusals of position selectors that select nothing, or what is not there."""

from typing import Any

import pytest

from tests.contract.harness import addition, fetch, generate, intervention, site
from tests.contract.refusals import ONES, Case, check

TURNS = {"conversation": {"turns": [{"role": "user", "content": "hello"}]}}


def selector(
    case: str, wire: dict[str, Any], reason: str, *says: str, prompt: Any = None, field: str = ""
) -> Case:
    """Of a capture, of "hello" (6 tokens) unless another prompt is given."""
    return Case(
        name=f"positions {case}",
        request=fetch(
            prompts=[prompt or {"text": "hello"}], capture={"sites": [site()], "positions": wire}
        ),
        reason=reason,
        field=f"readouts[0].rows.positions{field}",
        says=says,
    )


CASES = [
    selector(
        "by an empty selector",
        {},
        "FIELD_REQUIRED",
        "token_ids",
        "characters",
        "leave the whole selector unset",
    ),
    selector(
        "of a position beyond the prompt",
        {"list": {"positions": [0, 6]}},
        "POSITION_OUT_OF_RANGE",
        "items[0]",
        "6",
        "0 to 5",
    ),
    selector(
        "of a position before the prompt",
        {"list": {"positions": [-7]}},
        "POSITION_OUT_OF_RANGE",
        "-7",
    ),
    selector(
        "of a position twice",
        {"list": {"positions": [5, -1]}},
        "POSITION_OUT_OF_RANGE",
        "once",
    ),
    selector(
        "of an empty list",
        {"list": {}},
        "POSITION_OUT_OF_RANGE",
        "at least one",
    ),
    selector(
        "of an empty range",
        {"span": {"start": 3, "end": 3}},
        "POSITION_OUT_OF_RANGE",
        "[3:3]",
    ),
    selector(
        "of generated positions when nothing is generated",
        {"generated": {}},
        "POSITION_OUT_OF_RANGE",
        "generate",
    ),
    selector("of no token ids", {"token_ids": {}}, "FIELD_REQUIRED", "at least one"),
    selector(
        "of a token id beyond the vocabulary",
        {"token_ids": {"ids": [1, 260]}},
        "TOKEN_OUT_OF_RANGE",
        "260",
        "0 to 259",
        field=".token_ids.ids[1]",
    ),
    selector(
        "of token ids that the prompt does not hold",
        {"token_ids": {"ids": [1, 2]}},
        "POSITION_OUT_OF_RANGE",
        "none of the token ids 1, 2",
        "items[0]",
    ),
    selector("of no text", {"text": {}}, "FIELD_REQUIRED", "empty"),
    selector("of a text that is not there", {"text": {"text": "Hell"}}, "TEXT_NOT_FOUND", "'Hell'"),
    selector(
        "of an occurrence that is not there",
        {"text": {"text": "l", "occurrence": 2}},
        "TEXT_NOT_FOUND",
        "2 times",
    ),
    selector(
        "of a text in token ids",
        {"text": {"text": "h"}},
        "FIELD_INVALID",
        "token ids",
        prompt={"token_ids": {"ids": [104]}},
    ),
    selector(
        "of the chat template's own text",
        {"text": {"text": "user"}},
        "TEXT_NOT_FOUND",
        prompt=TURNS,
    ),
    selector(
        "of no characters",
        {"characters": {"start": 3, "end": 3}},
        "POSITION_OUT_OF_RANGE",
        "[3, 3)",
    ),
    selector(
        "of characters beyond the text",
        {"characters": {"start": 3, "end": 6}},
        "POSITION_OUT_OF_RANGE",
        "[3, 6)",
        "5 characters",
    ),
    selector(
        "of characters of no turn",
        {"characters": {"end": 2}},
        "FIELD_INVALID",
        "name the turn",
        prompt=TURNS,
    ),
    selector("of a turn of a text", {"text": {"text": "h", "turn": 0}}, "FIELD_INVALID", "turn 0"),
    selector("of turns of a text", {"turns": {}}, "FIELD_INVALID", "no conversation"),
    selector(
        "of a turn that is not there",
        {"turns": {"turns": [0, 2]}},
        "TURN_OUT_OF_RANGE",
        "turn 2",
        "1 turns",
        prompt=TURNS,
    ),
    selector(
        "of a role that says nothing",
        {"turns": {"turns": [0], "roles": ["system"]}},
        "POSITION_OUT_OF_RANGE",
        "turns 0 and roles 'system'",
        prompt=TURNS,
    ),
    selector(
        "of an answer when nothing is generated",
        {"turns": {"roles": ["assistant"]}},
        "POSITION_OUT_OF_RANGE",
        "generate",
        prompt=TURNS,
    ),
    Case(
        name="intervention on token ids that the prompt does not hold",
        request=fetch(
            "ab",
            "c",
            interventions=[intervention(zero={}, positions={"token_ids": {"ids": [97]}})],
        ),
        reason="POSITION_OUT_OF_RANGE",
        field="interventions[0].positions",
        says=("items[1]", "97", "allow_unused"),
    ),
    Case(
        name="intervention beyond the sequence",
        request=generate(
            interventions=[{**addition(ONES), "positions": {"list": {"positions": [10]}}}]
        ),
        reason="POSITION_OUT_OF_RANGE",
        field="interventions[0].positions",
        says=("10", "0 to 9"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)
