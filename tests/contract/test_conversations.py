"""Conversations as models have them, through a served fake: tools, parts, an open last turn."""

import json
from typing import Any

from google.protobuf import struct_pb2

from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import prompt_pb2
from actserve_server.rpc.requests.json_values import MAX_BYTES, MAX_DEPTH, MAX_VALUES, JsonReader
from tests.contract.harness import generate, matrices, run, serving, site

USER = {"role": "user", "content": "hi"}


async def tokenized(**conversation: Any) -> prompt_pb2.TokenizedPrompt:
    async with serving() as served:
        request = pb.TokenizeRequest(prompt={"conversation": {"turns": [USER], **conversation}})
        return (await served.models.Tokenize(request)).prompt


async def rendered(**conversation: Any) -> str:
    return "".join((await tokenized(**conversation)).texts)


async def test_tools_and_their_calls_reach_the_template_as_they_are_written() -> None:
    call = {"name": "add", "arguments_json": '{"b": 1, "a": 1.0}'}
    turns = [
        USER,
        {"role": "assistant", "tool_calls": [call, {"id": "c", "name": "now"}]},
        {"role": "tool", "content": "2", "tool_call_id": "c", "name": "add"},
    ]
    tool = '{"name": "add", "b": [1, 1.0], "a": null}'
    text = await rendered(turns=turns, tools=[{"json": tool}])
    assert text == (
        f"<bos><|role|>tools\n[{tool}]<|end|>"
        "<|role|>user\nhi<|end|>"
        '<|role|>assistant\n{"name": "add", "arguments": {"b": 1, "a": 1.0}}'
        '{"name": "now", "arguments": {}}<|end|>'
        "<|role|>tool\n2<|end|>"
        "<|role|>assistant\n"
    )


async def test_template_arguments_reach_the_template() -> None:
    answers = "<bos><|role|>user\nhi<|end|><|role|>assistant\n"
    assert await rendered(template_arguments={"enable_thinking": False}) == answers
    assert await rendered(template_arguments={"enable_thinking": True}) == answers + "<think>"


async def test_an_open_turn_is_left_open_and_no_other_begun() -> None:
    turns = [USER, {"role": "assistant", "content": "yo"}]
    for given in ({}, {"add_generation_prompt": False}):
        text = await rendered(turns=turns, continue_final_turn=True, **given)
        assert text == "<bos><|role|>user\nhi<|end|><|role|>assistant\nyo"


async def test_generated_tokens_belong_to_the_turn_that_is_left_open() -> None:
    turns = [USER, {"role": "assistant", "content": "yo"}]
    for wanted in ({"turns": [1]}, {"turns": [-1]}, {"roles": ["assistant"]}):
        events = await run(
            generate(
                prompt={"conversation": {"turns": turns, "continue_final_turn": True}},
                capture={"sites": [site()], "positions": {"turns": wanted}},
                sampling={"max_tokens": 3},
            )
        )
        tokens = len(events[0].started.prompt.ids)
        assert matrices(events)[0, 0][0] == [tokens - 2, tokens - 1, tokens, tokens + 1]


async def test_the_characters_of_a_turn_run_on_over_its_parts() -> None:
    parts = [{"text": "ab"}, {"text": ""}, {"text": "é"}]
    prompt = await tokenized(turns=[{"role": "user", "parts": parts}])
    said = [(s.turn, s.role, s.start, s.end) for s in prompt.sources if s.HasField("start")]
    assert said == [(0, "user", *span) for span in [(0, 1), (1, 2), (2, 3), (2, 3)]]


def test_json_is_read_up_to_its_limits() -> None:
    reader = JsonReader()
    deep = '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    assert reader.object(deep, ()) == json.loads(deep)
    # The object, its list, and as many values as are left.
    left = MAX_VALUES - MAX_DEPTH - 2
    assert len(reader.object(json.dumps({"a": [0] * left}), ())["a"]) == left
    room = MAX_BYTES - len('{"a": ""}')
    assert len(JsonReader().object(json.dumps({"a": "x" * room}), ())["a"]) == room


def test_numbers_of_a_struct_without_a_fraction_are_integers_and_its_keys_sorted() -> None:
    struct = struct_pb2.Struct()
    struct.update({"n": 3, "x": 0.5, "big": 1e300, "z": {"b": -1, "a": [None, True, "s", 2**53]}})
    read = JsonReader().struct(struct, ())
    assert json.dumps(read) == (
        '{"big": 1e+300, "n": 3, "x": 0.5, '
        '"z": {"a": [null, true, "s", 9007199254740992], "b": -1}}'
    )
