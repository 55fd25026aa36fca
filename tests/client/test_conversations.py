"""Conversations as the Python client puts them on the wire."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format

import actserve
from actserve.prompts import is_many, prompt_to_proto
from actserve.v1 import prompt_pb2

TURNS = [{"role": "user", "content": "hi"}]
CALL = {"function": {"name": "add", "arguments": {"b": 1, "a": 1.0}}}


def proto(turns: Any = TURNS, **options: Any) -> prompt_pb2.Conversation:
    return prompt_to_proto(actserve.Conversation(turns, **options)).conversation


@pytest.mark.parametrize("asked", [True, False])
def test_a_conversation_says_whether_the_model_is_to_answer(asked: bool) -> None:
    conversation = proto(add_generation_prompt=asked)
    assert conversation.HasField("add_generation_prompt")
    assert conversation.add_generation_prompt is asked
    assert [(turn.role, turn.content) for turn in conversation.turns] == [("user", "hi")]


def test_whether_the_model_answers_is_left_to_the_server_where_nobody_says() -> None:
    for conversation in (proto(), proto(continue_final_turn=True)):
        assert not conversation.HasField("add_generation_prompt")
    assert proto(continue_final_turn=True).continue_final_turn


def test_a_content_of_parts_stays_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]
    (turn,) = proto([{"role": "user", "content": parts}]).turns
    assert not turn.HasField("content")
    assert [part.text for part in turn.parts] == ["a", ""]


def test_an_empty_content_is_not_the_same_as_none() -> None:
    empty, none = proto(
        [
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ]
    ).turns
    assert empty.HasField("content")
    assert not none.HasField("content")


def test_tools_and_their_calls_are_json_in_the_order_given() -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "Größe", "a": [1, 1.0]}}
    turns = [
        {"role": "assistant", "tool_calls": [CALL]},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "now"}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "raw", "arguments": '{"x":  1}'}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    ]
    conversation = proto(turns, tools=[tool])
    assert [tool.json for tool in conversation.tools] == [json.dumps(tool, ensure_ascii=False)]
    calls = [
        (call.id, call.name, call.arguments_json)
        for t in conversation.turns
        for call in t.tool_calls
    ]
    assert calls == [
        ("", "add", '{"b": 1, "a": 1.0}'),
        ("c1", "now", "{}"),
        ("", "raw", '{"x":  1}'),
    ]
    last = conversation.turns[-1]
    assert (last.role, last.content, last.tool_call_id, last.name) == ("tool", "2", "c1", "add")


def test_template_arguments_are_json_values_by_name() -> None:
    arguments = {"enable_thinking": False, "budget": 3, "list": ["a", None, {"b": 0.5}]}
    conversation = proto(template_arguments=arguments)
    assert json_format.MessageToDict(conversation.template_arguments) == arguments
    assert not proto().HasField("template_arguments")


def test_turns_with_calls_are_one_conversation() -> None:
    assert not is_many([{"role": "assistant", "tool_calls": [CALL]}])


# Deeper than the json module of any Python follows.
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": 1, "content": "x"}, "the role of turn 0 is a string, not int"),
        ({"role": "user", "content": 1}, "the content of turn 0 is a list, not int"),
        ({"role": "user", "content": []}, "turn 0 has an empty list of parts"),
        ({"role": "user", "content": ["x"]}, "a part of turn 0 is a mapping, not str"),
        ({"role": "user", "content": [{"type": "text"}]}, "a part of turn 0 has 'text', 'type'"),
        (
            {"role": "user", "content": [{"type": "image", "text": ""}]},
            "is of the type 'image'; the type is 'text'",
        ),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "is a string, not int"),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "the tool_call_id of turn 0"),
        ({"role": "assistant", "tool_calls": []}, "turn 0 has no content"),
        ({"role": "assistant", "tool_calls": CALL}, "tool_calls of turn 0 is a list, not dict"),
        ({"role": "assistant", "tool_calls": [{}]}, "a tool call of turn 0 has 'function'"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "code"}]},
            "is of the type 'code'; the type is 'function'",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
            "the function of a tool call of turn 0 has 'name'",
        ),
        *(
            (
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
                },
                f"the arguments of a tool call of turn 0 {says}",
            )
            for arguments, says in [
                ([1], "is a mapping, not list"),
                ({"a": math.nan}, "cannot be written as JSON"),
                ({"a": object()}, "cannot be written as JSON"),
                ({"a": DEEP}, "cannot be written as JSON"),
            ]
        ),
    ],
)
def test_a_turn_that_would_not_arrive_whole_is_refused(turn: Any, message: str) -> None:
    with pytest.raises(actserve.InvalidRequest, match=message) as caught:
        proto([turn])
    assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": ["x"]}, "tool 0 is a mapping, not str"),
        ({"tools": [{}, {"a": math.inf}]}, "tool 1 cannot be written as JSON"),
        ({"template_arguments": ["x"]}, "is a mapping, not list"),
        ({"template_arguments": {"a": {1, 2}}}, "template arguments are JSON values"),
        ({"template_arguments": {1: "a"}}, "template arguments are JSON values"),
        ({"template_arguments": {"a": math.nan}}, "nan is no number of JSON"),
        ({"template_arguments": {"a": [{"b": 2**53 + 1}]}}, "9007199254740993 is too large"),
        ({"template_arguments": {"a": DEEP}}, "template arguments are JSON values"),
    ],
)
def test_tools_and_arguments_that_would_not_arrive_whole_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(actserve.InvalidRequest, match=message) as caught:
        proto(**options)
    assert caught.value.reason == "FIELD_INVALID"
