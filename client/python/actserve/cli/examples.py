"""Labelled examples, and prompts with keys, of a file: JSON lines or Parquet, one a line or row."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from actserve.cli.prompts import records, user_turn
from actserve.errors import InvalidRequest
from actserve.fit_examples import PROMPTS, Example


def read_examples(file: Path, chat: bool) -> list[Example]:
    """The examples of a file; `actserve.fit_examples` says what its records have. With `chat` a
    text is a user's turn."""
    found: list[Example] = []
    for where, record in _records(file):
        try:
            found.append(Example.of(_chat(record) if chat else record))
        except InvalidRequest as error:
            raise typer.BadParameter(f"{where}: {error.message}") from None
    if not found:
        raise typer.BadParameter(f"{file} has no example")
    return found


def read_keyed(file: Path, chat: bool) -> dict[str, Any]:
    """The prompts of a file of records by their `key`, or by the number of their line."""
    found: dict[str, Any] = {}
    for number, (where, record) in enumerate(_records(file), 1):
        name = next((each for each in PROMPTS if record.get(each) is not None), None)
        if name is None:
            raise typer.BadParameter(f"{where} has none of {', '.join(PROMPTS)}")
        prompt = record if name == "messages" else record[name]
        if name == "messages":
            prompt = {key: each for key, each in record.items() if key in _CONVERSATION}
        elif chat and isinstance(prompt, str):
            prompt = user_turn(prompt)
        key = str(record.get("key") or number)
        if key in found:
            raise typer.BadParameter(f"{where} has the key {key!r}, which came before")
        found[key] = prompt
    if not found:
        raise typer.BadParameter(f"{file} has no prompt")
    return found


_CONVERSATION = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")


def _records(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file.suffix not in (".jsonl", ".parquet"):
        raise typer.BadParameter(f"{file} must end in .jsonl or .parquet")
    for where, record in records(file):
        if not isinstance(record, Mapping):
            raise typer.BadParameter(
                f'{where} is no record; write one such as {{"text": "...", "label": true}}'
            )
        yield where, record


def _chat(record: Mapping[str, Any]) -> Mapping[str, Any]:
    name = next((each for each in ("prompt", "text") if isinstance(record.get(each), str)), None)
    if name is None:
        return record
    rest = {key: each for key, each in record.items() if key not in PROMPTS}
    return {**rest, "messages": user_turn(record[name])}
