"""Cells that several cards have: tokens and numbers, and the rows and columns of heat maps."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from actserve._show.bounds import TOKENS_OF_TEXT, ends
from actserve._show.cards import GAP, Cell
from actserve._show.token_text import cut, visible

MakeCell: TypeAlias = Callable[[int, int], Cell]
"""The cell of a row and a column, by their indexes."""

_WORD = 12
"""Characters of a token in a heat map."""


def token_cells(
    tokens: Sequence[str], cell: Callable[[int], Cell] | None = None
) -> tuple[Cell, ...]:
    """Tokens one after another, by their index, or without colours; of many, both ends."""

    def plain(at: int) -> Cell:
        return Cell(visible(tokens[at]))

    make = cell or plain
    return tuple(GAP if at is None else make(at) for at in ends(len(tokens), TOKENS_OF_TEXT))


def grid(
    rows: Sequence[int | None], columns: Sequence[int | None], cell: MakeCell
) -> tuple[tuple[Cell, ...], ...]:
    """The cells of the rows and columns that are shown."""
    return tuple(
        tuple(GAP if row is None or at is None else cell(row, at) for at in columns) for row in rows
    )


def labels(shown: Sequence[int | None], names: Sequence[str]) -> tuple[Cell, ...]:
    """Names beside rows."""
    return tuple(GAP if at is None else Cell(cut(names[at], 40)) for at in shown)


def token_labels(
    shown: Sequence[int | None], tokens: Sequence[str], positions: Sequence[int]
) -> tuple[Cell, ...]:
    """Tokens beside rows or above columns, of which entry i is at `positions[i]`."""
    return tuple(
        GAP
        if at is None
        else Cell(word(tokens[positions[at]]), title=token_title(tokens, positions[at]))
        for at in shown
    )


def token_title(tokens: Sequence[str], position: int) -> str:
    """A token and where it is, in words."""
    return f"{visible(tokens[position])} (position {int(position)})"


def word(token: str) -> str:
    """A token in a heat map."""
    return visible(token, _WORD)


def number(value: float) -> str:
    """A number with three digits or more."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def share(value: float) -> str:
    """A number from 0 to 1, or about there; one that rounds to zero has no sign."""
    return f"{round(value, 2) + 0.0:.2f}"
