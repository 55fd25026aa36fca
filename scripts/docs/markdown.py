"""Plain text as Markdown that reads the same."""

import re
from collections.abc import Callable

_SPECIAL = re.compile(r"[\\*_\[\]&<>]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str) -> str:
    """The text, with what Markdown would take for markup escaped; what is in backticks is code."""

    def escape(found: re.Match[str]) -> str:
        return _ENTITIES.get(found[0], f"\\{found[0]}")

    return outside_code(lambda part: _SPECIAL.sub(escape, part), text)


def outside_code(change: Callable[[str], str], text: str) -> str:
    """The text, changed wherever it is not in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else change(part) for part in parts)


def cell(text: str) -> str:
    """The Markdown as one cell of a table: on one line, and with no bar but in code."""
    return outside_code(lambda part: part.replace("|", "&#124;"), " ".join(text.split()))


def table(*columns: str, rows: list[tuple[str, ...]]) -> str:
    """A table of cells that are Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cell(each) for each in line)} |\n" for line in lines)


def definition(text: str) -> str:
    """What belongs to the line before it, as Markdown's definition lists write it."""
    return ":   " + text.strip().replace("\n", "\n    ") + "\n"
