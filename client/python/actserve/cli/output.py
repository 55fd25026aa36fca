"""Output: tables for people on standard output, JSON for programs, and words on standard error."""

import codecs
import dataclasses
import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from actserve._retries import LOGGER
from actserve._show.token_text import harmless
from actserve.errors import ActserveError
from actserve.results import Activations

_COMMANDS = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON may hold as it is and a terminal or an encoder may not; those below are escaped."""


def write_any_character() -> None:
    """Lets standard output and error take characters that their encoding has not, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def plain_text(text: str, style: str = "") -> Text:
    """A text from elsewhere, for a table or a message: neither its brackets nor its control
    characters mean anything."""
    return Text(harmless(text), style)


def write(text: str) -> None:
    """Writes what a model says, at once: as it is into a file or a pipe, harmless to a terminal."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printed(found: Any, as_json: bool) -> None:
    """Prints what was found, one study or a list of them, for people or for programs."""
    if as_json:
        print_json(found)
        return
    console = Console()
    for each in found if isinstance(found, list) else [found]:
        console.print(
            plain_text(f"error: {each}", "red") if isinstance(each, ActserveError) else each
        )


def print_json(found: Any) -> None:
    """Prints JSON."""
    # JSON has escapes of its own for what an encoding has not.
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    told = json.dumps(plain(found), indent=2, ensure_ascii=not unicode, allow_nan=False)
    print(_COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", told))


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, what is not a number as null, errors by their
    parts."""
    match value:
        case ActserveError():
            return {
                "error": value.message,
                "reason": value.reason,
                "field": value.field,
                "request_id": value.request_id,
            }
        case _ if hasattr(value, "to_json"):
            return plain(value.to_json())
        case Activations():
            return {
                "tokens": plain(value.tokens),
                "token_ids": plain(value.token_ids),
                "positions": plain(value.positions),
                "rows": {site: plain(rows) for site, rows in value.items()},
                "request_id": value.request_id,
            }
        case np.ndarray() | np.generic():
            return plain(value.tolist())
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {
                each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)
            }
        case _:
            return value


def print_json_line(found: Any) -> None:
    """Prints JSON on one line, at once: for programs that read a stream of it."""
    told = json.dumps(plain(found), allow_nan=False)  # In ASCII, whatever the encoding.
    print(told.replace("\x7f", "\\u007f"), flush=True)


def printed_line(text: str) -> None:
    """Prints a line of what may come from elsewhere, at once."""
    print(harmless(text).replace("\n", " "), flush=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on a terminal what is waited for."""
    with Console(stderr=True).status(what):
        yield


@contextmanager
def connection_told() -> Iterator[None]:
    """Says on standard error what the client has to say of its connection."""
    handler = _Saying()
    LOGGER.addHandler(handler)
    before, LOGGER.propagate = LOGGER.propagate, False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.propagate = before


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(plain_text(record.getMessage()))


def say(message: str | Text) -> None:
    """One line on standard error; wrapped by the terminal alone, so that pipes get one line."""
    Console(stderr=True).print(message, soft_wrap=True, markup=False, highlight=False)
