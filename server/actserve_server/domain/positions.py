"""Which token positions of a sequence a capture or an intervention covers.

A selector is what a caller writes; it is resolved once, when the prompt is tokenized, to a
`Selection`: sorted, disjoint half-open ranges of absolute positions, and where it was by token id
the ids. Everything behind the edge (engine, worker, collector) decides by absolute position and
token alone, never by the kind of a step, so that preemption and recomputation cannot move a
boundary.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actserve_server.domain import passages
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.prompts import TokenizedPrompt

NO_END = sys.maxsize
"""End of a span that goes on for as long as the sequence does."""


@dataclass(frozen=True)
class Spans:
    """Sorted, disjoint, non-empty half-open ranges of absolute positions."""

    ranges: tuple[tuple[int, int], ...]

    @staticmethod
    def of(positions: Iterable[int]) -> "Spans":
        """The spans that hold exactly these positions."""
        ordered = np.unique(np.fromiter(positions, np.int64))
        is_first = np.diff(ordered, prepend=-2) > 1
        is_last = np.roll(is_first, -1)
        ranges = zip(ordered[is_first].tolist(), (ordered[is_last] + 1).tolist(), strict=True)
        return Spans(tuple(ranges))

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Where ranges start and end, int64 [ranges, 2]: a step of the worker looks at thousands of
        them."""
        return np.array(self.ranges, np.int64).reshape(-1, 2)

    def within(self, start: int, end: int) -> np.ndarray:
        """The selected positions in [start, end), ascending, as int64."""
        if start >= end:
            return np.empty(0, np.int64)
        if len(self.ranges) == 1:
            low, high = self.ranges[0]
            return np.arange(max(low, start), min(high, end), dtype=np.int64)
        lows, highs = self._bounds.T
        first, last = np.searchsorted(highs, start, "right"), np.searchsorted(lows, end, "left")
        if first >= last:
            return np.empty(0, np.int64)
        lows = np.maximum(lows[first:last], start)
        counts = np.minimum(highs[first:last], end) - lows
        before = np.cumsum(counts) - counts
        return np.repeat(lows - before, counts) + np.arange(counts.sum(), dtype=np.int64)

    def first(self, start: int, end: int) -> int | None:
        """The first selected position in [start, end); None if there is none."""
        if len(self.ranges) != 1:
            found = self.within(start, end)
            return int(found[0]) if len(found) else None
        low, high = self.ranges[0]
        position = max(low, start)
        return position if position < min(high, end) else None

    def count(self, end: int) -> int:
        """How many selected positions lie below `end`."""
        lows, highs = self._bounds.T
        return int((np.clip(highs, None, end) - lows).clip(0).sum())

    def ordinals(self, positions: np.ndarray) -> np.ndarray:
        """How many selected positions lie below each of these selected ones, int64."""
        lows, highs = self._bounds.T
        which = np.searchsorted(lows, positions, "right") - 1
        # The last range may have no end; none lies behind it.
        before = np.concatenate([[0], np.cumsum((highs - lows)[:-1])])
        return before[which] + positions - lows[which]

    def next_bound(self, position: int) -> int:
        """The lowest position above this one at which a range starts or ends: from here to there
        all positions are selected, or none is."""
        if len(self.ranges) == 1:
            low, high = self.ranges[0]
            return low if position < low else high if position < high else NO_END
        bounds = self._bounds.ravel()
        index = int(np.searchsorted(bounds, position, "right"))
        return int(bounds[index]) if index < len(bounds) else NO_END


@dataclass(frozen=True, slots=True)
class Selection:
    """The positions of `spans`, and if `token_ids` is set, of these only where the token is one of
    them. Which generated tokens match is known only as they are run."""

    spans: Spans
    token_ids: frozenset[int] | None = None

    def among(self, ids: Sequence[int]) -> np.ndarray:
        """The selected positions of a sequence of tokens, ascending, as int64."""
        positions = self.spans.within(0, len(ids))
        if self.token_ids is None:
            return positions
        return positions[np.isin(np.asarray(ids, np.int64)[positions], [*self.token_ids])]


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


@dataclass(frozen=True, slots=True)
class TokenIdPositions:
    """Every token with one of these ids, in the prompt and generated."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPositions:
    """Prompt tokens that overlap occurrences of a text: the `occurrence`-th (negative: from the
    last), or all; in turn `turn` of a conversation, or anywhere."""

    text: str
    occurrence: int | None = None
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class CharacterPositions:
    """Prompt tokens that overlap characters [start, end) of a text prompt or of a turn."""

    start: int
    end: int
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class TurnPositions:
    """What turns of a conversation say, by turn (negative: from the last of the prompt) and role;
    empty means any. Generated tokens are of the conversation's `answer_turn`, role "assistant"."""

    turns: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()


Positions = (
    AllPositions
    | LastPosition
    | PromptPositions
    | GeneratedPositions
    | PositionList
    | PositionRange
    | TokenIdPositions
    | TextPositions
    | CharacterPositions
    | TurnPositions
)


def resolve(
    selector: Positions, prompt: TokenizedPrompt, run_tokens: int, field: FieldPath
) -> Selection:
    """The absolute positions of a selector.

    `run_tokens` is the number of positions that can have activations in this request: prompt
    tokens plus generated tokens less the last, which is never run. Raises when what is named is
    not there. Only token ids that the prompt does not hold, turns that say nothing and generated
    positions may come out empty.
    """
    tokens = len(prompt.ids)
    match selector:
        case AllPositions():
            return Selection(Spans(((0, NO_END),)))
        case LastPosition():
            return Selection(Spans(((tokens - 1, tokens),)))
        case PromptPositions():
            return Selection(Spans(((0, tokens),)))
        case GeneratedPositions():
            return Selection(Spans(((tokens, NO_END),)))
        case PositionList(positions):
            return Selection(_resolve_list(positions, tokens, run_tokens, field))
        case PositionRange(start, end):
            return Selection(_resolve_range(start, end, tokens, run_tokens, field))
        case TokenIdPositions(ids):
            return _resolve_ids(ids, prompt, run_tokens, field)
        case TextPositions(text, occurrence, turn):
            return Selection(Spans.of(passages.of_text(prompt, text, occurrence, turn, field)))
        case CharacterPositions(start, end, turn):
            return Selection(Spans.of(passages.of_characters(prompt, start, end, turn, field)))
        case TurnPositions(turns, roles):
            positions, generated = passages.of_turns(prompt, turns, roles, field)
            if generated and run_tokens > tokens:
                return Selection(_and_generated(positions, tokens))
            return Selection(Spans.of(positions))


def _resolve_ids(
    ids: tuple[int, ...], prompt: TokenizedPrompt, run_tokens: int, field: FieldPath
) -> Selection:
    if not ids:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the list of token ids is empty; name at least one",
            field=field,
        )
    positions = np.flatnonzero(np.isin(np.asarray(prompt.ids, np.int64), ids))
    tokens = len(prompt.ids)
    if run_tokens > tokens:
        return Selection(_and_generated(positions, tokens), frozenset(ids))
    return Selection(Spans.of(positions))


def _and_generated(positions: np.ndarray, prompt_tokens: int) -> Spans:
    """Some positions of the prompt, and every one after it."""
    *before, (start, _) = Spans.of(np.append(positions, prompt_tokens)).ranges
    return Spans((*before, (start, NO_END)))


def _resolve_list(
    positions: tuple[int, ...], prompt_tokens: int, run_tokens: int, field: FieldPath
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
    start: int | None, end: int | None, prompt_tokens: int, run_tokens: int, field: FieldPath
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
