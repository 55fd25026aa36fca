"""Fit examples: labelled texts to fit a monitor by, or to test it on, as data sets have them.

| key of a row | |
|---|---|
| `prompt`, `text` or `messages` | what to run: a text, token ids or turns |
| `label` | true or false, 1 or 0, "positive" or "negative", "pos" or "neg", "yes" or "no" |
| `group` | what it belongs to, such as a conversation or an author; may be left out |
| `span` | where it is that: [start, end] of characters, or a piece of its text; may be left out |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve._checks import described, unicode
from actserve.errors import InvalidRequest
from actserve.positions import ByCharacters, ByText, Positions, check_positions, positions_to_proto
from actserve.prompts import Prompt, prompt_to_proto
from actserve.v1 import monitor_service_pb2 as pb

PROMPTS = ("prompt", "text", "messages")
"""Where the prompt of a row is looked for, in this order."""

_LABELS = {
    **dict.fromkeys(("positive", "pos", "true", "yes", "1"), True),
    **dict.fromkeys(("negative", "neg", "false", "no", "0"), False),
}
_MOST_GROUP_BYTES = 256


@dataclass(frozen=True, eq=False)
class Example:
    """A labelled text: `prompt`, whether it is `positive`, at which `positions` it is that, all
    when None, and the `group` that it belongs to, which is not split. Raises `InvalidRequest`.

        Example("You are an idiot", True, ByText("idiot"), group="author-7")
    """

    prompt: Prompt
    positive: bool
    positions: Positions | None = None
    group: str = ""

    def __post_init__(self) -> None:
        group: Any = self.group
        if not isinstance(group, str) or len(unicode(group, "a group").encode()) > (
            _MOST_GROUP_BYTES
        ):
            raise InvalidRequest(
                f"the group is {described(group)}; at most {_MOST_GROUP_BYTES} bytes are possible",
                reason="FIELD_INVALID",
            )
        if self.positions is not None:
            check_positions(self.positions)

    @staticmethod
    def of(row: Mapping[str, Any]) -> Example:
        """The example that a row of a data set is. Raises `InvalidRequest`, which says what is
        missing."""
        name = next((each for each in PROMPTS if row.get(each) is not None), None)
        if name is None:
            raise _invalid(f"the row has {_keys(row)}; one of {', '.join(PROMPTS)} is needed")
        if "label" not in row:
            raise _invalid(f"the row has {_keys(row)}; a label, true or false, is needed")
        # The tools of a conversation stand beside its turns.
        keys = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
        prompt: Any = (
            {key: row[key] for key in keys if row.get(key) is not None}
            if name == "messages"
            else row[name]
        )
        group = row.get("group")
        return Example(
            prompt,
            label(row["label"]),
            _span(row.get("span"), conversation=name == "messages" or not isinstance(prompt, str)),
            "" if group is None else str(group),
        )

    def to_proto(self) -> pb.FitExample:
        """The example as the contract writes it."""
        where = None if self.positions is None else positions_to_proto(self.positions)
        return pb.FitExample(
            prompt=prompt_to_proto(self.prompt),
            positive=bool(self.positive),
            positions=where,
            group=self.group,
        )


def label(given: Any) -> bool:
    """Whether a label is the positive one. Raises `InvalidRequest`."""
    if isinstance(given, bool | np.bool_):
        return bool(given)
    if isinstance(given, int | np.integer) and given in (0, 1):
        return bool(given)
    if isinstance(given, str) and given.strip().lower() in _LABELS:
        return _LABELS[given.strip().lower()]
    raise _invalid(
        f"{described(given)} is no label; use true or false, 1 or 0, 'positive' or 'negative', "
        "'pos' or 'neg'"
    )


def examples_of(examples: Any, name: str) -> list[Example]:
    """Examples, as such or as rows. Raises `InvalidRequest`, which names the one."""
    found: list[Example] = []
    for index, each in enumerate(_listed(examples, name)):
        if isinstance(each, Example):
            found.append(each)
        elif isinstance(each, Mapping):
            try:
                found.append(Example.of(each))
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"example {index}: {error.message}", reason=error.reason, path=(name, index)
                ) from None
        else:
            raise _invalid(
                f"{name}[{index}] is {described(each)}; give an Example, or a row such as "
                "{'text': ..., 'label': True}"
            )
    return found


def prompts_as(prompts: Any, name: str, positive: bool) -> list[Example]:
    """Prompts of one kind as examples; examples stay as they are but for their kind."""
    return [
        Example(each.prompt, positive, each.positions, each.group)
        if isinstance(each, Example)
        else Example(each, positive)
        for each in _listed(prompts, name)
    ]


def _listed(given: Any, name: str) -> list[Any]:
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # A data frame.
        return given.to_dict("records")
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InvalidRequest(
            f"{name} is {described(given)}; give a list", reason="FIELD_INVALID", path=(name,)
        )
    return [*given]


def _span(span: Any, *, conversation: bool) -> Positions | None:
    if span is None:
        return None
    if isinstance(span, str):
        return ByText(span)
    if isinstance(span, list | tuple) and len(span) == 2:
        start, end = span
        return ByCharacters(start, end, turn=-1 if conversation else None)
    raise _invalid(
        f"the span is {described(span)}; give [start, end] of the characters, or a piece of the "
        "text"
    )


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="FIELD_INVALID", path=("examples",))
