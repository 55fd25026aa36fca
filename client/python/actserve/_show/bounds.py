"""Bounds: what is too long is shown from both ends, and what is left out is said."""

from collections.abc import Sequence

TOKENS_OF_TEXT = 400
"""Tokens of a text shown one by one."""
COLUMNS = 24
"""Columns of a heat map with words in its cells: what a wide screen holds."""
ROWS = 48
"""Rows of a heat map or table: more layers than most models have, and about a page."""


def ends(count: int, limit: int) -> list[int | None]:
    """The indexes that are shown of `count`: all, or `limit` from both ends with None between."""
    if count <= limit:
        return [*range(count)]
    first = limit // 2
    return [*range(first), None, *range(count - (limit - first), count)]


def left_out(shown: Sequence[int | None], count: int, what: str) -> list[str]:
    """A note that says how many of `what` are not shown, if any."""
    missing = count - sum(index is not None for index in shown)
    return [f"{missing} of {count} {what} are left out, from the middle."] if missing else []
