"""Every refusal of a conversation: its reason, the field it names, and what it says."""

import json
import math
from typing import Any

import pytest
from google.protobuf import struct_pb2

from actserve.v1 import prompt_pb2
from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.requests.conversations import RESERVED_ARGUMENTS
from actserve_server.rpc.requests.json_values import MAX_BYTES, MAX_DEPTH, MAX_VALUES
from tests.contract.harness import fetch, generate
from tests.contract.refusals import Case, check, refusal

USER = {"role": "user", "content": "x"}
ANSWER = {"role": "assistant", "content": "y"}


def conversation(case: str, given: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    return Case(
        name=case,
        request=generate(prompt={"conversation": {"turns": [USER], **given}}),
        reason=reason,
        field=f"prompt.conversation.{field}",
        says=says,
    )


def turn(case: str, fields: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    """Of the second turn."""
    return conversation(case, {"turns": [USER, fields]}, reason, f"turns[1]{field}", *says)


def tool(case: str, text: str, *says: str) -> Case:
    """Of the second tool."""
    tools = [{"json": "{}"}, {"json": text}]
    return conversation(case, {"tools": tools}, "FIELD_INVALID", "tools[1].json", *says)


def argument(case: str, value: Any, reason: str, *says: str) -> Case:
    """Of the template argument "a"."""
    struct = struct_pb2.Struct(fields={"a": value})
    field = "template_arguments.a"
    return conversation(case, {"template_arguments": struct}, reason, field, *says)


def nested(depth: int) -> str:
    """An object in which lists are, so many deep in all."""
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def nested_value(depth: int) -> Any:
    value: Any = {"list_value": {}}
    for _ in range(depth - 1):
        value = {"list_value": {"values": [value]}}
    return value


CALL = {"name": "f"}
TOO_DEEP = f"more than {MAX_DEPTH} deep"
TOO_MANY = f"more than {MAX_VALUES} JSON values"

CASES = [
    # Turns
    turn("turn without a role", {"content": "x"}, "FIELD_REQUIRED", ".role", "or tool"),
    turn("turn that says nothing", {"role": "user"}, "FIELD_REQUIRED", ".content", "may be empty"),
    turn(
        "turn of content and parts",
        {"role": "user", "content": "", "parts": [{"text": "x"}]},
        "FIELD_INVALID",
        ".parts",
        "both content and parts",
    ),
    turn(
        "part without a kind",
        {"role": "user", "parts": [{"text": "x"}, {}]},
        "FIELD_REQUIRED",
        ".parts[1]",
        "set text",
    ),
    turn(
        "call by a user",
        {"role": "user", "content": "x", "tool_calls": [CALL]},
        "FIELD_INVALID",
        ".tool_calls",
        "only an assistant turn",
    ),
    turn(
        "answer by a user",
        {"role": "user", "content": "x", "tool_call_id": "c"},
        "FIELD_INVALID",
        ".tool_call_id",
        "only a turn of role tool",
    ),
    turn(
        "call without a name",
        {"role": "assistant", "tool_calls": [CALL, {"id": "c"}]},
        "FIELD_REQUIRED",
        ".tool_calls[1].name",
        "set its name",
    ),
    *(
        turn(
            f"call with arguments {case}",
            {"role": "assistant", "tool_calls": [{**CALL, "arguments_json": text}]},
            "FIELD_INVALID",
            ".tool_calls[0].arguments_json",
            says,
        )
        for case, text, says in [
            ("that are no object", "[1]", "no object"),
            ("that are no JSON", "{'a': 1}", "this is no JSON"),
            ("of NaN", '{"a": NaN}', "NaN is no number of JSON"),
        ]
    ),
    # An open turn
    conversation(
        "open turn and generation prompt",
        {"turns": [USER, ANSWER], "continue_final_turn": True, "add_generation_prompt": True},
        "FIELD_INVALID",
        "continue_final_turn",
        "add_generation_prompt",
    ),
    conversation(
        "open turn of a user",
        {"continue_final_turn": True},
        "FIELD_INVALID",
        "continue_final_turn",
        "not the assistant's",
    ),
    *(
        conversation(
            f"open turn of calls{case}",
            {
                "turns": [USER, {"role": "assistant", "tool_calls": [CALL], **content}],
                "continue_final_turn": True,
            },
            "FIELD_INVALID",
            "continue_final_turn",
            "calls of tools",
        )
        for case, content in [("", {}), (" and content", {"content": "x"})]
    ),
    # Tools
    conversation(
        "tool without a definition", {"tools": [{}]}, "FIELD_REQUIRED", "tools[0].json", "object"
    ),
    tool("tool that is no JSON", "{", "this is no JSON"),
    tool("tool that is no object", "null", "no object"),
    tool("tool with infinity", '{"a": [-Infinity]}', "-Infinity is no number of JSON"),
    tool("tool with a number beyond all", '{"a": [1e999]}', "inf is not finite"),
    tool("tool with an integer of 5,000 digits", f'{{"a": {"1" * 5000}}}', "this is no JSON"),
    tool("tool with a key twice", '{"a": {"b": 1, "b": 2}}', "twice"),
    tool("tool with half a character", '{"a": "\\ud800"}', "surrogate"),
    tool("tool with half a character in a key", '{"a": [{"\\udc00": 1}]}', "surrogate"),
    tool("tool too deep", nested(MAX_DEPTH + 1), TOO_DEEP),
    tool("tool much too deep", nested(100_000), TOO_DEEP),
    tool("tool too large", json.dumps({"a": "x" * MAX_BYTES}), str(MAX_BYTES)),
    # With the tool before it and its own two objects.
    tool("tool of too many values", json.dumps({"a": [0] * (MAX_VALUES - 2)}), TOO_MANY),
    # Template arguments
    *(
        conversation(
            f"argument {name}",
            {"template_arguments": {name: "{{ 1 }}"}},
            "FIELD_INVALID",
            f"template_arguments.{name}",
            "since the server sets it",
        )
        for name in sorted(RESERVED_ARGUMENTS | {"return_tensors", "return_dict"})
    ),
    *(
        conversation(
            f"argument of the name {name[:10]!r}",
            {"template_arguments": {"enable_thinking": True, name: 1}},
            "FIELD_INVALID",
            "template_arguments",
            "no name of a template argument",
        )
        for name in ["", "a b", "a.b", "1a", "é", "a" * 65, "__class__\n"]
    ),
    conversation(
        "argument the template does not name",
        {"template_arguments": {"enable_thinkin": True}},
        "PROMPT_NOT_RENDERABLE",
        "template_arguments.enable_thinkin",
        "does not name enable_thinkin",
    ),
    *(
        argument(f"argument of {number}", {"number_value": number}, "FIELD_INVALID", "not finite")
        for number in (math.nan, math.inf, -math.inf)
    ),
    argument("argument of no kind", {}, "FIELD_REQUIRED", "no kind"),
    argument(
        "argument with a value of no kind", {"list_value": {"values": [{}]}}, "FIELD_REQUIRED"
    ),
    argument("argument too deep", nested_value(MAX_DEPTH + 1), "FIELD_INVALID", TOO_DEEP),
    argument(
        "argument of too many values",
        {"list_value": {"values": [{"bool_value": True}] * MAX_VALUES}},
        "FIELD_INVALID",
        TOO_MANY,
    ),
    conversation(
        "arguments too large",
        {"template_arguments": {"a": "x" * MAX_BYTES}},
        "FIELD_INVALID",
        "template_arguments",
        str(MAX_BYTES),
    ),
    # All together
    conversation(
        "tools and arguments too large together",
        {
            "tools": [{"json": json.dumps({"a": "x" * (MAX_BYTES // 2)})}],
            "template_arguments": {"a": "x" * (MAX_BYTES // 2)},
        },
        "FIELD_INVALID",
        "template_arguments",
        str(MAX_BYTES),
    ),
    conversation(
        "tools and arguments of too many values together",
        {
            "tools": [{"json": json.dumps({"a": [0] * (MAX_VALUES // 2)})}],
            "template_arguments": {"a": [0] * (MAX_VALUES // 2)},
        },
        "FIELD_INVALID",
        "template_arguments.a",
        TOO_MANY,
    ),
    Case(
        name="tool of the second prompt",
        request=fetch(
            prompts=[{"text": "a"}, {"conversation": {"turns": [USER], "tools": [{"json": "1"}]}}]
        ),
        reason="FIELD_INVALID",
        field="items[1].prompt.conversation.tools[0].json",
        says=("no object",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_conversation_that_cannot_be_meant_is_refused(case: Case) -> None:
    # With room for what is too much for other reasons.
    await check(case, FakeEngine(limits=Limits(max_sequence_tokens=1 << 16)))


async def test_arguments_nested_beyond_what_protocol_buffers_parse_are_refused() -> None:
    value = nested_value(49)
    request = generate(
        prompt={"conversation": {"turns": [USER], "template_arguments": {"fields": {"a": value}}}}
    )
    assert (await refusal(request)).reason == "REQUEST_MALFORMED"


async def test_an_unknown_field_within_template_arguments_is_refused() -> None:
    newer = struct_pb2.Value.FromString(b"\x98\x06\x01")  # Field 99.
    value: Any = {"list_value": {"values": [newer]}}
    struct = struct_pb2.Struct(fields={"a": value})
    request = generate(prompt={"conversation": {"turns": [USER], "template_arguments": struct}})
    refused = await refusal(request)
    assert refused.reason == "FIELD_UNKNOWN"
    assert refused.field == ("prompt.conversation.template_arguments.fields.list_value.values[0]")


def test_no_field_lets_a_caller_send_a_template() -> None:
    fields = prompt_pb2.Conversation.DESCRIPTOR.fields
    assert [field.name for field in fields if "template" in field.name] == ["template_arguments"]
