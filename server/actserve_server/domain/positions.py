"""Which token positions of a sequence a capture or an intervention covers.

A selector is what a caller writes; it is resolved once, when the prompt's length is known, to
`Spans`: sorted, disjoint half-open ranges of absolute positions. Everything behind the edge
(engine, worker, collector) decides by absolute position alone, never by the kind of a step, so
that preemption and recomputation cannot move a boundary.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason

NO_END = sys.maxsize
"""End of a span that goes on for as long as the sequence does."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Sorted, disjoint, non-empty half-open ranges of absolute positions."""

    ranges: tuple[tuple[int, int], ...]

    @staticmethod
    def of(positions: Iterable[int]) -> "Spans":
        """The spans that hold exactly these positions."""
        ranges: list[tuple[int, int]] = []
        for position in sorted(set(positions)):
            if ranges and ranges[-1][1] == position:
                ranges[-1] = (ranges[-1][0], position + 1)
            else:
                ranges.append((position, position + 1))
        return Spans(tuple(ranges))

    def within(self, start: int, end: int) -> np.ndarray:
        """The selected positions in [start, end), ascending, as int64."""
        parts = [
            np.arange(max(low, start), min(high, end), dtype=np.int64)
            for low, high in self.ranges
            if low < end and high > start
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def count(self, end: int) -> int:
        """How many selected positions lie below `end`."""
        return sum(max(0, min(high, end) - low) for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class AllPositions:
    """Every position."""


@dataclass(frozen=True, slots=True)
class LastPosition:
    """The last prompt position."""


@dataclass(frozen=True, slots=True)
class PromptPositions:
    """Every prompt position."""


@dataclass(frozen=True, slots=True)
class GeneratedPositions:
    """Every position after the prompt."""


@dataclass(frozen=True, slots=True)
class PositionList:
    """Listed positions; negative ones count from the end of the prompt."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PositionRange:
    """[start, end); negative bounds count from the end of the prompt, None leaves a side open."""

    start: int | None = None
    end: int | None = None


Positions = (
    AllPositions
    | LastPosition
    | PromptPositions
    | GeneratedPositions
    | PositionList
    | PositionRange
)


def resolve(selector: Positions, prompt_tokens: int, run_tokens: int, field: str) -> Spans:
    """The absolute spans of a selector.

    `run_tokens` is the number of positions that can have activations in this request: prompt
    tokens plus generated tokens less the last, which is never run. Raises when a listed position
    or a range can select nothing of it.
    """
    match selector:
        case AllPositions():
            return Spans(((0, NO_END),))
        case LastPosition():
            return Spans(((prompt_tokens - 1, prompt_tokens),))
        case PromptPositions():
            return Spans(((0, prompt_tokens),))
        case GeneratedPositions():
            return Spans(((prompt_tokens, NO_END),))
        case PositionList(positions):
            return _resolve_list(positions, prompt_tokens, run_tokens, field)
        case PositionRange(start, end):
            return _resolve_range(start, end, prompt_tokens, run_tokens, field)


def _resolve_list(
    positions: tuple[int, ...], prompt_tokens: int, run_tokens: int, field: str
) -> Spans:
    if not positions:
        raise ActserveError(
            Reason.POSITION_OUT_OF_RANGE,
            "the position list is empty; name at least one",
            field=field,
        )
    absolute: dict[int, int] = {}
    for position in positions:
        index = position + prompt_tokens if position < 0 else position
        if not 0 <= index < run_tokens:
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                f"position {position} is out of range; {_what_exists(prompt_tokens, run_tokens)}",
                field=field,
                metadata={"position": position, "prompt_tokens": prompt_tokens},
            )
        if index in absolute:
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                f"positions {absolute[index]} and {position} are the same token; list it once",
                field=field,
            )
        absolute[index] = position
    return Spans.of(absolute)


def _resolve_range(
    start: int | None, end: int | None, prompt_tokens: int, run_tokens: int, field: str
) -> Spans:
    def bound(value: int) -> int:
        # As in a Python slice, a bound before the start means the start.
        return max(0, value + prompt_tokens) if value < 0 else value

    low = 0 if start is None else bound(start)
    high = NO_END if end is None else bound(end)
    if low >= min(high, run_tokens):
        raise ActserveError(
            Reason.POSITION_OUT_OF_RANGE,
            f"the range [{'' if start is None else start}:{'' if end is None else end}] selects no "
            f"token; {_what_exists(prompt_tokens, run_tokens)}",
            field=field,
            metadata={"prompt_tokens": prompt_tokens},
        )
    return Spans(((low, high),))


def _what_exists(prompt_tokens: int, run_tokens: int) -> str:
    return (
        f"the prompt has {prompt_tokens} tokens, and this request has activations at positions "
        f"0 to {run_tokens - 1}"
    )
