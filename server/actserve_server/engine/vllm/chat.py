"""A conversation on its way through the model's own chat template, as transformers applies it.

What the template would pass over in silence is refused: tools that it knows nothing of, and
arguments that it does not name.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.prompts import Conversation, ToolCall, Turn
from actserve_server.engine.vllm.sources import Piece


class Chat:
    """One conversation, and `pieces`, the texts in it that can be rendered otherwise."""

    def __init__(self, tokenizer: Any, conversation: Conversation) -> None:
        self._tokenizer = tokenizer
        self.conversation = conversation
        self._options: dict[str, Any] = dict(conversation.template_arguments)
        if conversation.tools:
            # Only then: some tokenizers have another template for tools, even for none of them.
            self._options["tools"] = list(conversation.tools)
        if conversation.continue_final_turn:
            self._options["continue_final_message"] = True
        self._check()
        self._lists: frozenset[int] = frozenset()
        """The turns whose content is handed over as a list of parts."""
        self._lists = self._read_as_lists()
        self.pieces = list(self._pieces())

    def ids(self) -> tuple[int, ...]:
        """The token ids of the conversation."""
        try:
            # One step, because rendering and then encoding would double the BOS.
            ids = self._apply([piece.text for piece in self.pieces], return_dict=False)
        except Exception as error:
            # Templates are the checkpoint's own code and refuse in their own ways.
            raise _refusal(
                f"the model's chat template refuses this conversation: {self._why(error)}"
            ) from error
        return tuple(ids)

    def text(self, texts: Sequence[str]) -> str:
        """The conversation rendered with these texts in the place of its pieces."""
        return self._apply(texts, tokenize=False)

    def _check(self) -> None:
        if not getattr(self._tokenizer, "chat_template", None):
            raise _refusal("this model has no chat template; send text or token ids")
        conversation = self.conversation
        template: str = self._tokenizer.get_chat_template(tools=self._options.get("tools"))
        if conversation.tools and not _names(template, "tools"):
            raise _refusal("the model's chat template knows of no tools; leave them out", "tools")
        for index, turn in enumerate(conversation.turns):
            if turn.tool_calls and not _names(template, "tool_calls"):
                raise _refusal(
                    "the model's chat template knows of no calls of tools; leave them out",
                    *("turns", index, "tool_calls"),
                )
        for name in conversation.template_arguments:
            at = ("template_arguments", name)
            if name in self._tokenizer.special_tokens_map:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"{name} is a special token of this model; leave it out",
                    field=("conversation", *at),
                )
            if not _names(template, name):
                raise _refusal(
                    f"the model's chat template does not name {name}; check the spelling, or leave "
                    "it out",
                    *at,
                )

    def _read_as_lists(self) -> frozenset[int]:
        """The turns of parts whose role the template reads from lists of parts.

        It is tried out. A template for plain text fails on a list or writes it out as Python or
        JSON does, with each text in quotes; one for lists writes the texts alone.
        """
        turns = self.conversation.turns
        self._lists = frozenset(
            index for index, turn in enumerate(turns) if isinstance(turn.content, tuple)
        )
        if not self._lists:
            return self._lists
        pieces = list(self._pieces())
        marks = [f"{secrets.token_hex(8)}x{index}x" for index in range(len(pieces))]
        try:
            rendered = self.text(marks)
        except Exception:
            return frozenset()
        written = {
            turn: all(
                re.search(f"(?<![\"']){mark}", rendered)
                for piece, mark in zip(pieces, marks, strict=True)
                if piece.turn == turn
            )
            for turn in self._lists
        }
        return frozenset(turn for turn, as_text in written.items() if as_text)

    def _pieces(self) -> Iterator[Piece]:
        for index, turn in enumerate(self.conversation.turns):
            if index in self._lists and isinstance(turn.content, tuple):
                first = 0
                for part in turn.content:
                    yield Piece(part.text, index, first)
                    first += len(part.text)
            elif turn.content is not None:
                yield Piece(turn.text, index, 0)

    def _apply(self, texts: Sequence[str], **options: Any) -> Any:
        ahead = iter(texts)
        messages = [
            _message(turn, ahead, as_list=index in self._lists)
            for index, turn in enumerate(self.conversation.turns)
        ]
        return self._tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=self.conversation.add_generation_prompt,
            **self._options,
            **options,
        )

    def _why(self, error: Exception) -> str:
        # transformers quotes the whole conversation when it finds no end to continue at.
        if self.conversation.continue_final_turn and str(error).startswith("continue_final"):
            return "it does not write the last turn as it is, so that nothing can continue it"
        return str(error)


def _message(turn: Turn, texts: Iterator[str], *, as_list: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role}
    if as_list and isinstance(turn.content, tuple):
        message["content"] = [{"type": "text", "text": next(texts)} for _ in turn.content]
    elif turn.content is not None:
        message["content"] = next(texts)
    if turn.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in turn.tool_calls]
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.name:
        message["name"] = turn.name
    return message


def _tool_call(call: ToolCall) -> dict[str, Any]:
    number = {"id": call.id} if call.id else {}
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", **number, "function": function}


def _names(template: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", template) is not None


def _refusal(message: str, *at: str | int) -> ActserveError:
    path: FieldPath = ("conversation", *at)
    return ActserveError(Reason.PROMPT_NOT_RENDERABLE, message, field=path)
