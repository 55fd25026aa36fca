"""What people see while they wait."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console

console = Console(highlight=False, width=100, log_path=False)
"""A fixed width: long runs write to files."""

_Item = TypeVar("_Item")
_EVERY = 20.0
"""Seconds between lines."""


def track(
    items: Sequence[_Item], name: str, notes: dict[str, float] | None = None
) -> Iterator[_Item]:
    """The items, saying every so often how many are done, what is left, and the latest notes."""
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said > _EVERY or done == len(items):
            said = now
            left = (now - start) / done * (len(items) - done)
            told = "".join(f"  {key} {value:.3f}" for key, value in (notes or {}).items())
            console.log(f"{name} {done}/{len(items)}  {now - start:.0f} s, {left:.0f} s left{told}")
