"""Prompts of OpenAI requests as the contract writes them.

vLLM renders the prompt, and what it renders is run. But only our own tokenizer tells which turn and
characters each token comes from, which positions are selected by. So it renders the prompt as well,
and where both come to the same tokens, that is known of them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format

from actserve.v1 import prompt_pb2

Body = Mapping[str, Any]


def of_chat(body: Body) -> Callable[[int], prompt_pb2.Prompt | None]:
    """The only prompt of a chat; None where the contract cannot write it."""

    def written(_: int) -> prompt_pb2.Prompt | None:
        try:
            return prompt_pb2.Prompt(conversation=_conversation(body))
        except (json_format.ParseError, AttributeError, KeyError, TypeError, ValueError):
            return None

    return written


def of_completion(body: Body) -> Callable[[int], prompt_pb2.Prompt | None]:
    """The prompts of a completion; None for one of token ids, which is known as it is."""
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt

    def written(number: int) -> prompt_pb2.Prompt | None:
        if not isinstance(texts, list) or not body.get("add_special_tokens", True):
            return None
        text = texts[number]
        return prompt_pb2.Prompt(text=text) if isinstance(text, str) else None

    return written


def _conversation(body: Body) -> prompt_pb2.Conversation:
    made = prompt_pb2.Conversation(
        turns=[_turn(each) for each in body["messages"]],
        add_generation_prompt=body.get("add_generation_prompt", True),
        continue_final_turn=body.get("continue_final_message", False),
        tools=[
            prompt_pb2.ToolDefinition(json=json.dumps(each)) for each in body.get("tools") or ()
        ],
    )
    if arguments := body.get("chat_template_kwargs"):
        json_format.ParseDict(arguments, made.template_arguments)
    return made


def _turn(message: Mapping[str, Any]) -> prompt_pb2.Turn:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return prompt_pb2.Turn(
        role=message["role"],
        content=content if isinstance(content, str) else None,
        parts=[prompt_pb2.ContentPart(text=part["text"]) for part in parts],
        tool_calls=[
            prompt_pb2.ToolCall(
                id=call.get("id"),
                name=call["function"]["name"],
                arguments_json=call["function"].get("arguments"),
            )
            for call in message.get("tool_calls") or ()
        ],
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
    )
