"""Cuts work on many rows into blocks, so that what is held on the way does not grow with them."""

from collections.abc import Iterator

BLOCK_BYTES = 8 << 20
"""Bytes of float32 results computed at a time; all temporaries together are about six times it."""


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover `rows` rows in order, each with results of `width` float32 a row."""
    step = max(1, BLOCK_BYTES // max(1, 4 * width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
