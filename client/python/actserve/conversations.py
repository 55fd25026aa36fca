"""Conversations, as transformers' chat templates take them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf import struct_pb2

from actserve._checks import described, unicode
from actserve.errors import InvalidRequest
from actserve.v1 import prompt_pb2

Turn: TypeAlias = Mapping[str, Any]
"""One turn, with these keys:

- `role`: "system", "user", "assistant" or "tool";
- `content`: a string, or a list of parts `{"type": "text", "text": ...}`, which is what the turn
  says one after the other. An assistant turn with `tool_calls` may do without;
- `tool_calls`, of an assistant turn: a list of `{"type": "function", "id": ..., "function":
  {"name": ..., "arguments": {...}}}`, of which `type` and `id` may be missing. Arguments may also
  be a string of JSON;
- `tool_call_id`, of a turn of role "tool": which call it answers;
- `name`: who speaks, such as the tool.
"""

_EXACT = 1 << 53
"""Up to here a `Struct` holds every integer."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, oldest first, rendered by the model's own chat template.

    With `add_generation_prompt`, the header of an assistant turn is appended, so that the model
    answers; None means True, or False with `continue_final_turn`. That leaves the last turn, which
    is the assistant's, open for the model to go on with.

    `tools` are definitions as the template takes them, mostly `{"type": "function", "function":
    {"name": ..., "description": ..., "parameters": <a JSON schema>}}`. `template_arguments` are
    more variables for the template, such as `{"enable_thinking": False}`; one that it does not name
    is an `InvalidRequest`, and so are tools that it knows nothing of.
    """

    turns: Sequence[Turn]
    add_generation_prompt: bool | None = None
    continue_final_turn: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(body: Mapping[str, Any]) -> "Conversation":
        """The conversation of a mapping as chat libraries and data sets have it: `messages`, and if
        you like `tools`, `chat_template_kwargs`, `add_generation_prompt` and
        `continue_final_message`. Raises `InvalidRequest` for any other key."""
        optional = {
            "tools": "tools",
            "chat_template_kwargs": "template_arguments",
            "add_generation_prompt": "add_generation_prompt",
            "continue_final_message": "continue_final_turn",
        }
        _check_keys(body, {"messages"}, {*optional}, "a conversation")
        messages = _list(body["messages"], "messages")
        options: dict[str, Any] = {
            own: body[name] for name, own in optional.items() if body.get(name) is not None
        }
        return Conversation(messages, **options)

    def to_proto(self) -> prompt_pb2.Conversation:
        """The conversation as the contract writes it. Raises `InvalidRequest` if it is not one."""
        conversation = prompt_pb2.Conversation(
            turns=[_turn(turn, f"turn {index}") for index, turn in enumerate(self.turns)],
            continue_final_turn=self.continue_final_turn,
            tools=[
                prompt_pb2.ToolDefinition(json=_json(tool, f"tool {index}"))
                for index, tool in enumerate(self.tools)
            ],
            template_arguments=_arguments(self.template_arguments),
        )
        if self.add_generation_prompt is not None:
            conversation.add_generation_prompt = self.add_generation_prompt
        return conversation


def _turn(turn: Turn, what: str) -> prompt_pb2.Turn:
    # Dropping a key would run another prompt than the one given.
    _check_keys(turn, {"role"}, {"content", "tool_calls", "tool_call_id", "name"}, what)
    content, calls = turn.get("content"), turn.get("tool_calls") or ()
    if content is None and not calls:
        raise _invalid(f"{what} has no content; give it a string or a list of parts")
    if not isinstance(content, str | None) and not _list(content, f"the content of {what}"):
        raise _invalid(f"{what} has an empty list of parts; give it at least one, or a string")
    return prompt_pb2.Turn(
        **{
            key: _string(turn[key], f"the {key} of {what}")
            for key in ("role", "tool_call_id", "name")
            if key in turn
        },
        content=_string(content, f"the content of {what}") if isinstance(content, str) else None,
        parts=[] if isinstance(content, str | None) else [_part(part, what) for part in content],
        tool_calls=[_tool_call(call, what) for call in _list(calls, f"tool_calls of {what}")],
    )


def _part(part: Any, turn: str) -> prompt_pb2.ContentPart:
    what = f"a part of {turn}"
    _check_keys(part, {"type", "text"}, set(), what)
    if part["type"] != "text":
        raise _invalid(f"{what} is of the type {described(part['type'])}; the type is 'text'")
    return prompt_pb2.ContentPart(text=_string(part["text"], f"the text of {what}"))


def _tool_call(call: Any, turn: str) -> prompt_pb2.ToolCall:
    what = f"a tool call of {turn}"
    _check_keys(call, {"function"}, {"type", "id"}, what)
    if call.get("type", "function") != "function":
        raise _invalid(f"{what} is of the type {described(call['type'])}; the type is 'function'")
    function = call["function"]
    _check_keys(function, {"name"}, {"arguments"}, f"the function of {what}")
    arguments, given = function.get("arguments", {}), f"the arguments of {what}"
    return prompt_pb2.ToolCall(
        id=_string(call.get("id", ""), f"the id of {what}"),
        name=_string(function["name"], f"the name of {what}"),
        arguments_json=unicode(arguments, given)
        if isinstance(arguments, str)
        else _json(arguments, given),
    )


def _arguments(arguments: Mapping[str, Any]) -> struct_pb2.Struct | None:
    _check_mapping(arguments, "what template_arguments is given")
    if not arguments:
        return None
    struct = struct_pb2.Struct()
    try:
        _check_numbers(arguments)
        struct.update(arguments)
    except InvalidRequest:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"template arguments are JSON values by name: {error}") from error
    return struct


def _check_numbers(value: Any) -> None:
    """Raises on a number that a double does not hold."""
    match value:
        case bool() | str():
            pass
        case int() if abs(value) > _EXACT:
            raise _invalid(f"{value} is too large for a template argument; send a string")
        case float() if not math.isfinite(value):
            raise _invalid(f"{value} is no number of JSON; use a finite one")
        case Mapping():
            for inner in value.values():
                _check_numbers(inner)
        case list() | tuple():
            for inner in value:
                _check_numbers(inner)
        case _:
            pass


def _json(value: Any, what: str) -> str:
    _check_mapping(value, what)
    try:
        written = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"{what} cannot be written as JSON: {error}") from error
    return unicode(written, f"{what}, written as JSON,")


def _check_keys(value: Any, required: set[str], optional: set[str], what: str) -> None:
    _check_mapping(value, what)
    if not required <= set(value) <= required | optional:
        also = f" and may have {_quoted(optional)}" if optional else ""
        raise _invalid(f"{what} has {_quoted(required)}{also}, but this one has {_quoted(value)}")


def _check_mapping(value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise _invalid(f"{what} is a mapping, not {type(value).__name__}")


def _quoted(keys: Iterable[Any]) -> str:
    return ", ".join(sorted(map(repr, keys))) or "no key"


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _invalid(f"{what} is a string, not {type(value).__name__}")
    return unicode(value, what)


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _invalid(f"{what} is a list, not {type(value).__name__}")
    return value


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="FIELD_INVALID")
