"""Cards: what is shown of a result, before it is HTML or text on a terminal.

All texts are as a reader sees them; whoever writes HTML or markup of them escapes them.
"""

from dataclasses import dataclass
from typing import TypeAlias

from actserve._show.scales import Scale


@dataclass(frozen=True)
class Cell:
    """A token, a number or a text."""

    text: str
    color: str | None = None
    """Its background, as #rrggbb."""
    title: str = ""
    """What is said of it where a mouse points."""
    number: str = ""
    """What the colour of a word means, for where there are no colours."""
    bar: float | None = None
    """The length of a bar beside it, 0 to 1."""


GAP = Cell("…", title="left out")
"""In the place of rows or columns that are left out."""


@dataclass(frozen=True)
class Line:
    """Tokens, or a text, one after another."""

    label: str
    cells: tuple[Cell, ...]
    scale: Scale | None = None
    """Of the colours."""


@dataclass(frozen=True)
class HeatMap:
    """Coloured cells in rows and columns."""

    label: str
    rows: tuple[Cell, ...]
    """A label for each row."""
    columns: tuple[Cell, ...]
    """A label for each column."""
    cells: tuple[tuple[Cell, ...], ...]
    """By row and column."""
    scale: Scale


@dataclass(frozen=True)
class Panels:
    """Heat maps side by side, of one scale."""

    maps: tuple[HeatMap, ...]
    words: bool
    """Whether their cells show their texts in HTML; small ones have them in titles."""
    what: str
    """What there is a map of each of, such as heads."""
    total: int
    """How many there are of these, with those that no map is made of."""
    others: str
    """How to see those that are not shown."""

    def left_out(self, shown: int) -> str:
        """What to say where so many are shown; empty where these are all."""
        if shown >= self.total:
            return ""
        return f"{shown} of {self.total} {self.what} are shown; {self.others}."


@dataclass(frozen=True)
class Table:
    """Words and numbers in columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


Part: TypeAlias = Line | HeatMap | Panels | Table


@dataclass(frozen=True)
class Card:
    """All that is shown of a result."""

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    """Sentences below: what colours mean, and what is left out."""
