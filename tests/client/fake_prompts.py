"""Prompts as the made-up model sees them."""

import re
from typing import Any

from actserve.v1 import prompt_pb2


def tokenized(prompt: prompt_pb2.Prompt) -> prompt_pb2.TokenizedPrompt:
    """One token a word; a turn's role is a token of the chat template."""
    match prompt.WhichOneof("source"):
        case "text":
            sourced = words(prompt.text)
        case "token_ids":
            texts = [f"<{token}>" for token in prompt.token_ids.ids]
            return prompt_pb2.TokenizedPrompt(ids=prompt.token_ids.ids, texts=texts)
        case _:
            sourced = [
                token
                for index, turn in enumerate(prompt.conversation.turns)
                for token in [
                    (turn.role, prompt_pb2.TokenSource()),
                    *words(turn.content, turn=index, role=turn.role),
                ]
            ]
    return prompt_pb2.TokenizedPrompt(
        ids=[sum(map(ord, text)) for text, _ in sourced],
        texts=[text for text, _ in sourced],
        sources=[source for _, source in sourced],
    )


def words(text: str, **turn: Any) -> list[tuple[str, prompt_pb2.TokenSource]]:
    """The words of a text, and where they are."""
    return [
        (word.group(), prompt_pb2.TokenSource(start=word.start(), end=word.end(), **turn))
        for word in re.finditer(r"\S+", text)
    ]
