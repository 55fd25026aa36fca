"""The scores of the monitors that watch one sample, as far as its rows have come.

Rows come as the engine gives them, of each capture by itself. They are scored in order of position
over all captures, up to the first token at which something is to be done; what is known there is
kept, so that the sample can go on from it in another run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork, ProbeOutputs
from actserve_server.domain.running_scores import RunningScores
from actserve_server.domain.runs import Capture, Rows
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.watched import Level, LevelName, Watcher, WatcherScore

QUICK_NUMBERS = 1 << 11
"""So many are scored on the event loop; more of them, as of a long prompt, in a thread. Short
windows take longest, up to 20 microseconds for a number."""


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """A level whose threshold a score has come above for the first time."""

    watcher: Watcher
    level: Level
    position: int
    score: float


class SampleScores:
    """Of watchers, whose rows are those of `captures`."""

    def __init__(self, watchers: Sequence[Watcher], *, each_token: bool = False) -> None:
        self._watchers = watchers
        by_selection: dict[Selection, list[int]] = {}
        for number, watcher in enumerate(watchers):
            by_selection.setdefault(watcher.selection, []).append(number)
        self._groups = [
            _Group(selection, tuple(numbers), [watchers[each] for each in numbers], each_token)
            for selection, numbers in by_selection.items()
        ]
        self._read = [group for group in self._groups if group.selection.spans.ranges]
        self._behind: tuple[_Group, int] | None = None
        """One of those that wait for the row at the position up to which all are ready, and the
        position. None is ready less far than it ever was, until all go back."""

    @property
    def captures(self) -> tuple[Capture, ...]:
        """What a run has to read for them."""
        return tuple(group.capture(group.selection) for group in self._read)

    def captures_at(self, position: int, token: int) -> dict[int, Capture]:
        """What a run has to read at one position for those that count it, by the number of the
        capture that it is of."""
        here = Selection(Spans(((position, position + 1),)))
        return {
            number: group.capture(here)
            for number, group in enumerate(self._read)
            if group.wanted <= position and group.counts(position, token)
        }

    async def score_aside(self, end: int | None = None) -> list[Reached]:
        """As `score`, where it would hold up others in a thread."""
        waiting = self.waiting(end)
        if not waiting:
            return []
        return self.score(end) if waiting <= QUICK_NUMBERS else await off_loop(self.score, end)

    @property
    def waits(self) -> bool:
        """Whether a number has come that is not scored yet."""
        return any(group.waiting for group in self._read)

    def waiting(self, end: int | None = None) -> int:
        """Numbers that have come and are not scored, below a position if one is given: those of
        rows that came together are all counted."""
        return sum(
            rows.size
            for group in self._read
            for positions, rows in group.waiting
            if end is None or positions[0] < end
        )

    @property
    def may_act(self) -> bool:
        """Whether a level that has an action may still be reached."""
        return any(group.may_act for group in self._read)

    def acts_at(self, position: int, token: int) -> bool:
        """Whether a watcher that may still act counts this token, whose row has not come."""
        return any(
            group.may_act and group.wanted <= position and group.counts(position, token)
            for group in self._read
        )

    def add(self, number: int, rows: Rows, ids: Sequence[int]) -> None:
        """Rows of capture `number` of a sequence of these tokens as far as it has come. Those that
        have come before are passed over. Raises MONITOR_INCOMPLETE if one is missing."""
        self._read[number].add(rows, ids)

    def ready(self, ids: Sequence[int]) -> int:
        """The first position, in a sequence of these tokens, whose row has not come."""
        # Asked at every row of every group, most of which change nothing.
        if self._behind is not None:
            group, position = self._behind
            if position < len(ids) and group.ready(ids) == position:
                return position
        self._behind, end = None, len(ids)
        for group in self._read:
            # The last of several, since rows come in the order of the groups.
            if (ready := group.ready(ids)) <= end and ready < len(ids):
                self._behind, end = (group, ready), ready
        return end

    def score(self, end: int | None = None) -> list[Reached]:
        """Scores rows that have come, below a position if one is given, up to the first token at
        which a level with an action is reached. What was reached, in order. Raises
        MONITOR_INCOMPLETE for a score that is not finite."""
        parts = [(group, group.next_part(end)) for group in self._read if group.has_rows(end)]
        acted = [part.first_action for _, part in parts if part.first_action is not None]
        last = min(acted) if acted else None
        for _, part in parts:
            # What comes after something was done is not of the sample, or comes again.
            if part.bad is not None and (last is None or part.bad[0] <= last):
                raise incomplete(part.bad[1], part.bad[0], "no finite score")
        reached: list[tuple[int, int, Reached]] = []
        for group, part in parts:
            reached += group.take(part, last)
        order = sorted(reached, key=lambda each: (each[2].position, each[0], each[1]))
        return [each for _, _, each in order]

    def go_back(self) -> None:
        """Rows that are not scored will come again."""
        self._behind = None
        for group in self._read:
            group.waiting.clear()
            group.wanted = group.next

    def check(self, ids: Sequence[int]) -> None:
        """Raises MONITOR_INCOMPLETE unless the row of every token of a sequence that counts has
        come."""
        for group in self._read:
            if (missing := group.ready(ids)) < len(ids):
                raise incomplete(group.watchers[0], missing, "no score")

    def scores(self) -> tuple[WatcherScore, ...]:
        """Of every watcher, in their order."""
        found = {}
        for group in self._groups:
            found.update(zip(group.numbers, group.scores(), strict=True))
        return tuple(found[number] for number in range(len(self._watchers)))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows of a group that are scored, and not yet taken as such."""

    positions: np.ndarray
    rows: np.ndarray
    after: RunningScores
    scores: np.ndarray
    over: np.ndarray | None = None
    """Where a threshold is exceeded that was not before, bool [levels, n, watchers]; None if
    nowhere."""
    first_action: int | None = None
    """The first position at which that has an action."""
    bad: tuple[int, Watcher] | None = None
    """The first position after these with a score that is not finite, and whose."""


@dataclass(slots=True, eq=False)
class _Group:
    """Watchers for which the same tokens count."""

    selection: Selection
    numbers: tuple[int, ...]
    watchers: Sequence[Watcher]
    each_token: bool
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Positions and rows that have come and are not scored."""
    wanted: int = 0
    """The position from which on rows have not come: all that count before it have."""
    next: int = 0
    """The position from which on they are not scored."""
    tokens: int = 0
    known: RunningScores = field(init=False)
    thresholds: np.ndarray = field(init=False)
    """Of levels that were not reached, float64 [levels, watchers]; infinite where there is none."""
    actions: np.ndarray = field(init=False)
    """Whether they have one, bool [levels, watchers]."""
    may_act: bool = field(init=False)
    """Whether a level that has an action was not reached."""
    reached: list[Level | None] = field(init=False)
    last: np.ndarray = field(init=False)
    highest: np.ndarray = field(init=False)
    highest_positions: np.ndarray = field(init=False)
    token_positions: list[np.ndarray] = field(default_factory=list)
    token_scores: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.watchers)
        self.known = RunningScores([(each.network, each.aggregator) for each in self.watchers])
        self.thresholds = np.full((len(LevelName), count), np.inf)
        self.actions = np.zeros((len(LevelName), count), bool)
        for index, watcher in enumerate(self.watchers):
            for level in watcher.levels:
                self.thresholds[level.name - 1, index] = level.threshold
                self.actions[level.name - 1, index] = level.action is not None
        self.may_act = bool(self.actions.any())
        self.reached = [None] * count
        self.last = np.zeros(count)
        self.highest = np.full(count, -np.inf)
        self.highest_positions = np.zeros(count, np.int64)

    def capture(self, selection: Selection) -> Capture:
        outputs = _outputs(tuple(each.network for each in self.watchers))
        return Capture(outputs.sites, selection, outputs)

    def counts(self, position: int, token: int) -> bool:
        wanted = self.selection.token_ids
        here = len(self.selection.spans.within(position, position + 1)) > 0
        return here and (wanted is None or token in wanted)

    def ready(self, ids: Sequence[int]) -> int:
        if self.wanted >= len(ids):
            return self.wanted
        if self.selection.token_ids is None:
            first = self.selection.spans.first(self.wanted, len(ids))
        else:
            left = self._selected(self.wanted, len(ids), ids)
            first = int(left[0]) if len(left) else None
        # What does not count is not looked at again: there may be tens of thousands of it.
        self.wanted = len(ids) if first is None else first
        return self.wanted

    def has_rows(self, end: int | None) -> bool:
        """Whether some wait to be scored, below a position if one is given."""
        return bool(self.waiting) and (end is None or bool(self.waiting[0][0][0] < end))

    def add(self, rows: Rows, ids: Sequence[int]) -> None:
        new = int(np.searchsorted(rows.positions, self.wanted))
        positions = rows.positions[new:]
        if not len(positions):
            return
        end = int(positions[-1]) + 1
        expected = self._selected(self.wanted, end, ids)
        if not np.array_equal(positions, expected):
            lost = np.setdiff1d(expected, positions)
            raise incomplete(self.watchers[0], int(lost[0]) if len(lost) else end - 1, "no score")
        self.waiting.append((positions, rows.bits[new:].astype(np.float32, copy=False)))
        self.wanted = end

    def next_part(self, end: int | None) -> _Part:
        taken = [
            (positions, rows)
            if end is None
            else (positions[: (count := int(np.searchsorted(positions, end)))], rows[:count])
            for positions, rows in self.waiting
        ]
        positions, rows = taken[0] if len(taken) == 1 else _together(taken)
        if not len(positions):
            none = np.empty((0, len(self.watchers)))
            return _Part(positions, none, self.known, none)
        after, scores = self.known.after(rows)
        bad = None
        if not np.isfinite(scores).all():
            at, which = np.argwhere(~np.isfinite(scores))[0].tolist()
            bad = int(positions[at]), self.watchers[which]
            positions, rows, scores = positions[:at], rows[:at], scores[:at]
            after = self.known.after(rows)[0]
        if not len(scores) or not (scores.max(0) > self.thresholds).any():
            return _Part(positions, rows, after, scores, bad=bad)
        over = scores > self.thresholds[:, None]
        acting = (over & self.actions[:, None]).any((0, 2))
        first = int(positions[acting.argmax()]) if acting.any() else None
        return _Part(positions, rows, after, scores, over, first, bad)

    def take(self, part: _Part, last: int | None) -> Iterable[tuple[int, int, Reached]]:
        """Takes the part as scored, up to the position `last` if one is given. Gives what was
        reached, with the numbers of the watcher and of the level."""
        count = len(part.positions)
        if last is not None:
            count = int(np.searchsorted(part.positions, last, "right"))
        if not count:
            return []
        positions, scores = part.positions[:count], part.scores[:count]
        whole = count == len(part.positions)
        self.known = part.after if whole else self.known.after(part.rows[:count])[0]
        self._drop(int(positions[-1]) + 1)
        self.tokens += count
        self.last = scores[-1]
        higher = scores.max(0) > self.highest
        if higher.any():
            most = scores.argmax(0)
            self.highest = np.where(higher, scores.max(0), self.highest)
            self.highest_positions = np.where(higher, positions[most], self.highest_positions)
        if self.each_token:
            self.token_positions.append(positions)
            self.token_scores.append(scores)
        return [] if part.over is None else self._reach(part.over[:, :count], positions, scores)

    def scores(self) -> list[WatcherScore]:
        positions = scores = None
        if self.each_token:
            positions = np.concatenate([np.empty(0, np.int64), *self.token_positions])
            none = np.empty((0, len(self.watchers)))
            scores = np.concatenate([none, *self.token_scores]).astype(np.float32)
        return [
            WatcherScore(
                watcher=watcher,
                tokens=self.tokens,
                score=float(self.last[index]),
                highest=float(self.highest[index]) if self.tokens else 0.0,
                highest_position=int(self.highest_positions[index]),
                level=self.reached[index],
                positions=positions,
                token_scores=None if scores is None else scores[:, index],
            )
            for index, watcher in enumerate(self.watchers)
        ]

    def _selected(self, start: int, end: int, ids: Sequence[int]) -> np.ndarray:
        positions = self.selection.spans.within(start, min(end, len(ids)))
        if self.selection.token_ids is None or not len(positions):
            return positions
        wanted = self.selection.token_ids
        return positions[[ids[position] in wanted for position in positions.tolist()]]

    def _drop(self, end: int) -> None:
        """What waits below a position is scored."""
        self.next = max(self.next, end)
        left = []
        for positions, rows in self.waiting:
            count = int(np.searchsorted(positions, end))
            if count < len(positions):
                left.append((positions[count:], rows[count:]))
        self.waiting = left

    def _reach(
        self, over: np.ndarray, positions: np.ndarray, scores: np.ndarray
    ) -> list[tuple[int, int, Reached]]:
        reached = []
        for row, index in np.argwhere(over.any(1)).tolist():
            at = int(over[row, :, index].argmax())
            watcher = self.watchers[index]
            level = next(each for each in watcher.levels if each.name == row + 1)
            self.thresholds[row, index] = np.inf
            if (so_far := self.reached[index]) is None or so_far.name < level.name:
                self.reached[index] = level
            found = Reached(watcher, level, int(positions[at]), float(scores[at, index]))
            reached.append((self.numbers[index], int(level.name), found))
        self.may_act = bool((self.actions & (self.thresholds < np.inf)).any())
        return reached


def _together(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and rows of several."""
    positions = np.concatenate([np.empty(0, np.int64), *(each for each, _ in parts)])
    rows = [rows for _, rows in parts]
    return positions, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


@lru_cache(maxsize=16)
def _outputs(networks: tuple[ProbeNetwork, ...]) -> ProbeOutputs:
    """The same for the same networks, since an engine hashes all their numbers once for each."""
    return ProbeOutputs(networks)


def incomplete(watcher: Watcher, position: int, what: str) -> ActserveError:
    """A token that counts has no score."""
    return ActserveError(
        Reason.MONITOR_INCOMPLETE,
        f"{watcher.monitor} has {what} for the token at position {position}, which counts; the "
        "answer is withheld: try again, and if it goes on, pause the monitor",
        metadata={"resource_name": watcher.monitor, "position": position},
    )
