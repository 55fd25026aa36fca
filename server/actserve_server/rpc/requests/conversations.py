"""Conversations from the wire."""

import re
from typing import Any

from actserve.v1 import prompt_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.prompts import Conversation, TextPart, ToolCall, Turn
from actserve_server.rpc.requests.json_values import JsonReader

RESERVED_ARGUMENTS = frozenset(
    (
        *("self", "conversation", "conversations", "messages", "tools", "documents"),
        *("chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "tokenizer_kwargs"),
        *("raise_exception", "strftime_now"),
    )
)
"""What a template or its renderer is given anyhow, besides names that begin with `return_` and the
special tokens, which the engine knows."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def conversation(wire: prompt_pb2.Conversation, field: FieldPath) -> Conversation:
    """The conversation of a message; raises on what no chat template is to be given."""
    if not wire.turns:
        raise _required("the conversation has no turns; send one", (*field, "turns"))
    reader = JsonReader()
    turns = tuple(
        _turn(turn, reader, (*field, "turns", index)) for index, turn in enumerate(wire.turns)
    )
    return Conversation(
        turns,
        _add_generation_prompt(wire, turns[-1], field),
        wire.continue_final_turn,
        tuple(
            _tool(tool, reader, (*field, "tools", index)) for index, tool in enumerate(wire.tools)
        ),
        _template_arguments(wire, reader, (*field, "template_arguments")),
    )


def _add_generation_prompt(wire: prompt_pb2.Conversation, last: Turn, field: FieldPath) -> bool:
    if not wire.continue_final_turn:
        return wire.add_generation_prompt if wire.HasField("add_generation_prompt") else True
    at = (*field, "continue_final_turn")
    if wire.add_generation_prompt:
        raise _invalid(
            "the last turn is to be continued, and add_generation_prompt would begin another; set "
            "one of them",
            at,
        )
    if last.role != "assistant":
        raise _invalid(
            "the last turn is to be continued, but it is not the assistant's; end with one of role "
            "assistant",
            at,
        )
    if last.tool_calls or last.content is None:
        raise _invalid(
            "the last turn is to be continued, but it ends in calls of tools; leave them out, or "
            "answer them",
            at,
        )
    return False


def _turn(wire: prompt_pb2.Turn, reader: JsonReader, field: FieldPath) -> Turn:
    if not wire.role:
        raise _required(
            "the turn has no role; use system, user or assistant, or tool for what a tool answers",
            (*field, "role"),
        )
    if wire.tool_calls and wire.role != "assistant":
        raise _invalid(
            "only an assistant turn calls tools; leave tool_calls out, or use the role assistant",
            (*field, "tool_calls"),
        )
    if wire.tool_call_id and wire.role != "tool":
        raise _invalid(
            "only a turn of role tool answers a call; leave tool_call_id out, or use the role tool",
            (*field, "tool_call_id"),
        )
    return Turn(
        wire.role,
        _content(wire, field),
        tuple(
            _tool_call(call, reader, (*field, "tool_calls", index))
            for index, call in enumerate(wire.tool_calls)
        ),
        wire.tool_call_id,
        wire.name,
    )


def _content(wire: prompt_pb2.Turn, field: FieldPath) -> str | tuple[TextPart, ...] | None:
    if wire.HasField("content"):
        if wire.parts:
            raise _invalid("the turn has both content and parts; set one", (*field, "parts"))
        return wire.content
    if wire.parts:
        return tuple(_part(part, (*field, "parts", index)) for index, part in enumerate(wire.parts))
    if not wire.tool_calls:
        raise _required(
            "the turn has neither content, which may be empty, nor parts; set one",
            (*field, "content"),
        )
    return None


def _part(wire: prompt_pb2.ContentPart, field: FieldPath) -> TextPart:
    match wire.WhichOneof("kind"):
        case "text":
            return TextPart(wire.text)
        case _:
            raise _required("the part has no kind this server knows; set text", field)


def _tool_call(wire: prompt_pb2.ToolCall, reader: JsonReader, field: FieldPath) -> ToolCall:
    if not wire.name:
        raise _required("the call names no tool; set its name", (*field, "name"))
    return ToolCall(
        wire.name, reader.object(wire.arguments_json or "{}", (*field, "arguments_json")), wire.id
    )


def _tool(wire: prompt_pb2.ToolDefinition, reader: JsonReader, field: FieldPath) -> dict[str, Any]:
    if not wire.json:
        raise _required("the tool has no definition; send a JSON object", (*field, "json"))
    return reader.object(wire.json, (*field, "json"))


def _template_arguments(
    wire: prompt_pb2.Conversation, reader: JsonReader, field: FieldPath
) -> dict[str, Any]:
    for name in sorted(wire.template_arguments.fields):
        if not _NAME.fullmatch(name):
            raise _invalid(
                f"{name!r} is no name of a template argument; use up to 64 letters, digits and "
                "underscores, no digit first",
                field,
            )
        if name in RESERVED_ARGUMENTS or name.startswith("return_"):
            raise _invalid(
                f"{name} is not for a template argument to set, since the server sets it; leave it "
                "out, and use the field of the conversation if there is one",
                (*field, name),
            )
    return reader.struct(wire.template_arguments, field)


def _required(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_REQUIRED, message, field=field)


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
