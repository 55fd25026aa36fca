"""Cards on a terminal, with rich, as wide as the terminal is. Needs the extra `cli`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from actserve._show.bounds import ends
from actserve._show.cards import GAP, Card, Cell, HeatMap, Line, Panels, Table
from actserve._show.scales import Scale, ink

_CELL = 12
"""Characters of a cell of a heat map at most, and of the label of a column."""
_LABEL = 24
"""Characters of the label of a row at most."""
_PANELS = 4
"""Small heat maps, which stand below one another here, at most."""
_BAR = 20
"""Characters of a bar of length one, where there is room for them."""
_SHORTEST_BAR = 4
"""Of which lengths can be told."""
_PADDING = 3
"""Blanks around and between the cells of a table."""
_NUMBER = re.compile("[-+]?[0-9.]+(e[-+]?[0-9]+)?|nan|[-+]?inf")
_FEWEST_COLUMNS = 2
"""Columns that a heat map shows at least, even where the terminal is too narrow for them."""


@dataclass(frozen=True)
class Printed:
    """A card that rich prints."""

    card: Card

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        colors = console.color_system is not None and not console.no_color
        # What comes from elsewhere is in Text, in which brackets are no markup.
        yield Text(self.card.title, style="bold")
        for part in self.card.parts:
            if isinstance(part, Line):
                yield _line(part)
                if part.scale and colors:
                    yield _legend(part.scale)
            elif isinstance(part, HeatMap):
                yield from _map(part, options.max_width, colors)
            elif isinstance(part, Table):
                yield _table(part, options.max_width)
            else:
                yield from _panels(part, options.max_width, colors)
        for note in self.card.notes:
            yield Text(note, style="dim")


def _line(line: Line) -> Text:
    text = Text(f"{line.label} " if line.label else "", style="")
    for cell in line.cells:
        text.append(cell.text, _style(cell))
        if cell.text.endswith("⏎"):
            text.append("\n")
    return text


def _panels(panels: Panels, width: int, colors: bool) -> Iterator[RenderableType]:
    for one in panels.maps[:_PANELS]:
        yield from _map(one, width, colors)
    if left := panels.left_out(min(len(panels.maps), _PANELS)):
        yield Text(left, style="dim")


def _map(heat: HeatMap, width: int, colors: bool) -> Iterator[RenderableType]:
    """A line for each row. Columns that do not fit are left out of the middle."""
    if heat.label:
        yield Text(heat.label, style="italic")
    labels = max([0, *(min(cell_len(row.text), _LABEL) for row in heat.rows)])
    sizes = [
        max(cell_len(_said(each, colors)) for each in (head, *(row[at] for row in heat.cells)))
        for at, head in enumerate(heat.columns)
    ]
    shown = _fitting(sizes, width - labels - 1)

    def line(label: Cell, cells: tuple[Cell, ...], style: str) -> Text:
        text = Text(set_cell_size(label.text, labels) + " ", no_wrap=True)
        for at in shown:
            cell, size = (GAP, 1) if at is None else (cells[at], sizes[at])
            said = set_cell_size(_said(cell, colors), size)
            text.append(f" {said} ", _style(cell) if cell.color else style)
        return text

    yield line(Cell(""), heat.columns, "bold")
    for label, cells in zip(heat.rows, heat.cells, strict=True):
        yield line(label, cells, "")
    if colors:
        yield _legend(heat.scale)
    narrower = {*range(len(heat.columns))} - {*shown}
    if missing := sum(heat.columns[at] is not GAP for at in narrower):
        yield Text(
            f"{missing} columns more are left out of the middle; a wider terminal shows them.",
            style="dim",
        )


def _fitting(sizes: list[int], width: int) -> list[int | None]:
    """As many columns as fit, each with a blank on either side."""
    for count in range(len(sizes), _FEWEST_COLUMNS, -1):
        shown = ends(len(sizes), count)
        if sum((1 if at is None else sizes[at]) + 2 for at in shown) <= width:
            return shown
    return ends(len(sizes), _FEWEST_COLUMNS)


def _said(cell: Cell, colors: bool) -> str:
    """The text of a cell of a heat map, cut, with its number where no colour tells it."""
    text = cell.text
    if cell_len(text) > _CELL:
        text = set_cell_size(text, _CELL - 1) + "…"
    return text if colors or not cell.number else f"{text} {cell.number}"


def _table(table: Table, width: int) -> RichTable:
    printed = RichTable(box=box.SIMPLE_HEAD, show_header=any(table.columns))
    columns = [(head, [row[at] for row in table.rows]) for at, head in enumerate(table.columns)]
    # A head takes its part of the width at most.
    most = max(1, width // max(len(columns), 1) - _PADDING)
    sizes = [_narrowest(head, cells, most) for head, cells in columns]
    for (head, cells), size in zip(columns, sizes, strict=True):
        # A number is never cut for a word.
        if _numeric(cells):
            printed.add_column("\n".join(wrap(head, size)), no_wrap=True)
        else:
            printed.add_column(head, overflow="fold")
    bars = sum(any(cell.bar is not None for cell in cells) for _, cells in columns)
    # Between a number and its bar there is a blank.
    room = (width - sum(sizes) - _PADDING * len(sizes)) // max(bars, 1) - 1
    room = min(room, _BAR) if room >= _SHORTEST_BAR else 0
    for row in table.rows:
        printed.add_row(*(_entry(cell, room) for cell in row))
    return printed


def _numeric(cells: list[Cell]) -> bool:
    """Whether a column has numbers alone."""
    texts = [cell.text for cell in cells if cell.text]
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def _narrowest(head: str, cells: list[Cell], most: int) -> int:
    """The width that a column needs: that of its longest text, and of a word of its head, of which
    `most` characters stand in a line."""
    words = [min(cell_len(word), most) for word in head.split()]
    return max([1, *words, *(cell_len(cell.text) for cell in cells)])


def _entry(cell: Cell, room: int) -> Text:
    if cell.bar is None:
        return Text(cell.text, _style(cell))
    full = round(room * min(max(cell.bar, 0.0), 1.0))
    text = Text(cell.text)
    return text.append(" ").append("█" * full, Style(color=cell.color)) if full else text


def _legend(scale: Scale) -> Text:
    text = Text(f"{scale.label}: {scale.low:g} ", style="dim")
    for step in range(16):
        color = scale.color(scale.low + (scale.high - scale.low) * step / 15)
        text.append(" ", Style(bgcolor=color))
    return text.append(f" {scale.high:g}")


def _style(cell: Cell) -> Style:
    return Style(color=ink(cell.color), bgcolor=cell.color) if cell.color else Style.null()
