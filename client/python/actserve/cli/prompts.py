"""Prompts of a file: text, JSON lines or Parquet."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

_COLUMNS = ("prompt", "text", "messages")
"""Where a prompt is looked for in a record, in this order."""


def read_prompts(file: Path, column: str | None, chat: bool) -> list[Any]:
    """The prompts of a file, by its suffix.

    `.jsonl` has a prompt a line: a string, token ids, a list of turns, or a record that has one in
    `column`; `.parquet` has one a row. Anything else, and `-`, which is standard input, is text
    with a prompt a line, where blank lines are skipped. With `chat` a text is a user's turn.
    """
    match file.suffix:
        case ".jsonl":
            found = _json_lines(file, column)
        case ".parquet":
            found = _parquet(file, column)
        case _:
            found = _lines(file)
    prompts = [user_turn(each) if chat and isinstance(each, str) else each for each in found]
    if not prompts:
        raise typer.BadParameter(f"{file} has no prompt")
    return prompts


def user_turn(text: str) -> Any:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


def _lines(file: Path) -> Iterator[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{file} is not text in UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from None
    text = text.removeprefix("\ufeff")  # With which some programs begin a text.
    return (line for line in text.split("\n") if line.strip())


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """What each line of a `.jsonl` file, or row of a `.parquet` file, has, and where that is."""
    if file.suffix == ".parquet":
        rows = _table(file).to_pylist()
        yield from ((f"row {number} of {file}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(_lines(file), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise typer.BadParameter(f"line {number} of {file} is not JSON: {error}") from None
        except RecursionError:
            raise typer.BadParameter(
                f"line {number} of {file} has lists in lists too deep to read"
            ) from None
        yield f"line {number} of {file}", value


def _json_lines(file: Path, column: str | None) -> Iterator[Any]:
    for where, value in records(file):
        yield _of_record(value, column, where)


def _table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file)
    except pa.ArrowException as error:
        raise typer.BadParameter(f"{file} cannot be read as Parquet: {error}") from None


def _parquet(file: Path, column: str | None) -> Iterator[Any]:
    table = _table(file)
    name = column or next((each for each in _COLUMNS if each in table.column_names), None)
    if name is None or name not in table.column_names:
        raise typer.BadParameter(
            f"{file} has the columns {', '.join(table.column_names)}; name the one with the "
            "prompts by --column"
        )
    return iter(table.column(name).to_pylist())


def _of_record(value: Any, column: str | None, where: str) -> Any:
    if not isinstance(value, dict):
        return value
    name = column or next((each for each in _COLUMNS if each in value), None)
    if name is None or name not in value:
        raise typer.BadParameter(
            f"{where} has the fields {', '.join(value)}; "
            "say which one holds the prompt with --column"
        )
    # The tools of a conversation, and the arguments of its template, stand beside its turns.
    return value if name == "messages" else value[name]
