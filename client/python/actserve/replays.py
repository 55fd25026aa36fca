"""Replays: what monitors score in prompts that are given, without acting and without alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._extras import needed
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.errors import ActserveError
from actserve.monitors import MonitorScore
from actserve.results import Usage

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedItem:
    """What monitors scored in one prompt."""

    key: str
    """What it is known by: its key, or its number where it has none."""
    index: int
    """Which one of the prompts."""
    error: ActserveError | None
    """Why it failed; then there are no scores. None if it was scored."""
    scores: Mapping[str, MonitorScore]
    """By the id of the monitor."""

    def level(self, monitor: str) -> str:
        """The highest level that its score came above, "lower" or "upper"; empty if none."""
        return self.scores[monitor].level


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A prompt that two monitors judge otherwise."""

    item: ReplayedItem
    one: MonitorScore
    other: MonitorScore


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Replay(Shown):
    """The table of a replay: what each monitor scored in each prompt."""

    items: tuple[ReplayedItem, ...]
    """All prompts, in order."""
    monitors: tuple[str, ...]
    """The ids of the monitors, as they were asked for."""
    usage: Usage
    """What it consumed."""

    @property
    def failed(self) -> tuple[ReplayedItem, ...]:
        """The prompts that failed."""
        return tuple(item for item in self.items if item.error)

    def highest(self, monitor: str) -> NDArray[np.float64]:
        """The highest score of each prompt by one of the monitors, NaN where it failed or nothing
        counted. Shape [items]. Raises `KeyError` for another monitor."""
        if monitor not in self.monitors:
            raise KeyError(f"{monitor} was not replayed; replayed: {', '.join(self.monitors)}")
        found = (item.scores[monitor].highest if item.scores else None for item in self.items)
        return np.array([np.nan if each is None else each for each in found], np.float64)

    def disagreements(self, one: str | None = None, other: str | None = None) -> list[Disagreement]:
        """The prompts of which the highest levels that two monitors came above are not the same:
        the first two where none are named. Those that only `one` is above come first, by how far
        the levels are apart, then by its score. Raises `KeyError` for another monitor.

            for each in replay.disagreements("new", "old"):
                print(each.item.key, each.one.level or "nothing", each.other.level or "nothing")
        """
        names = [each for each in self.monitors if each not in (one, other)]
        one = one or (names.pop(0) if names else self.monitors[0])
        other = other or (names.pop(0) if names else self.monitors[-1])
        for name in (one, other):
            if name not in self.monitors:
                raise KeyError(f"{name} was not replayed; replayed: {', '.join(self.monitors)}")
        found = [
            Disagreement(item, item.scores[one], item.scores[other])
            for item in self.items
            if not item.error and item.level(one) != item.level(other)
        ]
        rank = {"": 0, "lower": 1, "upper": 2}

        def key(each: Disagreement) -> tuple[int, float]:
            apart = rank.get(each.one.level, 3) - rank.get(each.other.level, 3)
            return (-apart, -(each.one.highest if each.one.highest is not None else -np.inf))

        return sorted(found, key=key)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row for each prompt: `key`, `error`, and of each monitor
        `<id>.highest`, `<id>.score`, `<id>.position`, `<id>.level` and `<id>.tokens`. Needs the
        extra `pandas`."""
        made: pd.DataFrame = needed("pandas", "data frames").DataFrame(self._records())
        return made

    def to_json(self) -> dict[str, Any]:
        """All of it as plain lists, strings and numbers; scores of single tokens are left out."""
        found: dict[str, Any] = plain(
            {"monitors": self.monitors, "items": self._records(), "usage": self.usage}
        )
        return found

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Replay({len(self)} prompts by {', '.join(self.monitors)}{failed})"

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "key": item.key,
                **{
                    f"{name}.{what}": value
                    for name in self.monitors
                    for what, value in _numbers(item.scores.get(name)).items()
                },
                "error": str(item.error) if item.error else "",
            }
            for item in self.items
        ]


def _numbers(score: MonitorScore | None) -> dict[str, Any]:
    return {
        "highest": score.highest if score else None,
        "score": score.score if score else None,
        "position": score.highest_position if score else None,
        "level": score.level if score else "",
        "tokens": score.tokens if score else 0,
    }
