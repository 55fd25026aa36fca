"""A run with taps, as the worker keeps it from one step to the next."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from actserve_server.domain.attention_rows import ReceivedWeights
from actserve_server.engine.forms import (
    ConditionForm,
    Kernel,
    OutputsForm,
    ProjectionForm,
    score_state,
)
from actserve_server.engine.vllm.bank import HeldVectors, VectorBank
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.network_rows import RunOutputs
from actserve_server.engine.vllm.project_rows import project
from actserve_server.engine.vllm.run_keys import ReceivedSums, RunKeys
from actserve_server.engine.vllm.wire import Edit, RunTaps


@dataclass(frozen=True, slots=True, eq=False)
class RunEdit:
    """An edit of a run."""

    number: int
    """Which of the run's edits it is: what its receipts are called."""
    edit: Edit
    blocks: tuple[HeldVectors, ...]
    """Of the edit's vectors in the bank, those of what it reads last."""
    turns: tuple[tuple[int, tuple[SiteKey, ...]], ...]
    """Its sites, by how many of the run's edits come before it there."""
    condition: "RunCondition | None" = None

    @property
    def block(self) -> HeldVectors:
        """Of the vectors of its kernel."""
        return self.blocks[0]

    @property
    def reads(self) -> "RunProjection | None":
        """What has the features that it changes."""
        form = self.edit.form.reads
        return None if form is None else RunProjection(form, self.blocks[1:])

    @property
    def differs(self) -> bool:
        """Whether what it does depends on the token, or differs from position to position."""
        form = self.edit.form
        by_position = form.kernel is Kernel.REPLACE and form.vectors.count > 1
        return by_position or self.edit.selection.token_ids is not None


@dataclass(slots=True, eq=False)
class RunCondition:
    """A condition of a run, which decides for one of its edits or several."""

    form: ConditionForm
    site: SiteKey
    direction: HeldVectors
    turn: int | None
    """Its site is read after so many of the run's edits there; after all of them if None."""
    end: int
    """Where the last selection of its edits ends: from here on nothing is scored."""
    state: torch.Tensor | None
    """Of a score with memory, as `scoring.py` has it: after the tokens of the steps so far."""

    def scored(self, start: int, end: int) -> range:
        """Of a score with memory, the positions in [start, end) that have one."""
        return range(start, max(start, min(end, self.end)))


@dataclass(frozen=True, slots=True, eq=False)
class RunProjection:
    """What one of a run's captures gives in place of rows, and where its vectors are."""

    form: ProjectionForm
    blocks: tuple[HeldVectors, ...]
    """Of the directions and of the offsets."""

    def of(self, rows: torch.Tensor, bank: VectorBank) -> torch.Tensor:
        """What it gives in place of rows, float32 [rows, width of `Projected`]."""
        directions, offsets = map(bank.rows, self.blocks)
        return project(rows, self.form, directions, offsets)


@dataclass(slots=True, eq=False)
class TappedRun:
    """A run with taps, as the worker keeps it while vLLM has the request."""

    taps: RunTaps
    edits: tuple[RunEdit, ...]
    derived: Mapping[int, RunProjection | RunOutputs]
    """By the number of the capture, where there are vectors to it."""
    conditions: tuple[RunCondition, ...] = ()
    keys: RunKeys | None = None
    """Where `PatternRows` are read."""
    received: Mapping[int, ReceivedSums] = field(default_factory=dict)
    """By the number of the capture."""
    reached: int = 0
    """Positions below this were computed for this run, or skipped and receipted."""
    at: int = 0
    """Where its last step ended: the states of its conditions are of the positions below this. -1
    if they are not of all of them."""

    @staticmethod
    def start(taps: RunTaps, bank: VectorBank, key_bytes: int = 0) -> "TappedRun":
        """Holds the run's vectors in the bank, and room for its keys, of so many bytes in a row.
        Raises as `VectorBank.hold`, and then holds none."""
        # Before the bank holds anything.
        states = [_first_state(form, bank.device) for form in taps.conditions]
        forms = {
            number: reading.derived
            for number, reading in enumerate(taps.captures)
            if isinstance(reading.derived, ProjectionForm | OutputsForm)
        }
        vectors = [each for edit in taps.edits for each in edit.form.every]
        vectors += [form.direction for form in taps.conditions]
        vectors += [each for form in forms.values() for each in form.vectors]
        keys = None if taps.patterns is None else RunKeys(taps.patterns, key_bytes, bank)
        try:
            blocks = iter(bank.hold_all(vectors))
        except BaseException:
            if keys is not None:
                keys.end()
            raise
        held = [tuple(next(blocks) for _ in edit.form.every) for edit in taps.edits]
        turns = _turns(taps)
        conditions = tuple(
            _condition(number, form, next(blocks), states[number], taps, turns)
            for number, form in enumerate(taps.conditions)
        )
        edits = tuple(
            RunEdit(
                number,
                edit,
                held[number],
                tuple((turn, tuple(sites)) for turn, sites in turns[number].items()),
                None if edit.condition is None else conditions[edit.condition],
            )
            for number, edit in enumerate(taps.edits)
        )
        derived = {number: _derived(form, blocks) for number, form in forms.items()}
        received = {
            number: keys.sums(len(reading.sites), reading.derived)
            for number, reading in enumerate(taps.captures)
            if keys is not None and isinstance(reading.derived, ReceivedWeights)
        }
        return TappedRun(taps, edits, derived, conditions, keys, received)

    def step(self, position: int, end: int) -> None:
        """Notes that positions [position, end) are computed in this step."""
        self.reached = max(self.reached, end)
        # A score that has missed a token has none until the run is computed from its beginning.
        self.at = end if position in (0, self.at) else -1

    def move_to(self, end: int) -> None:
        """The steps after the last one that was noted have come to this position."""
        self.reached = max(self.reached, end)
        self.at = end if self.at >= 0 else -1

    def take_back(self, end: int) -> None:
        """Of the last step only positions below this count. A score with memory has none from here
        on, since it has seen others."""
        if end < self.reached:
            self.reached, self.at = end, -1

    def end(self, bank: VectorBank) -> None:
        """Lets go of all that the run holds."""
        if self.keys is not None:
            self.keys.end()
        for each in self.edits:
            for block in each.blocks:
                bank.release(block)
        for each in self.conditions:
            bank.release(each.direction)
        for each in self.derived.values():
            for block in each.blocks:
                bank.release(block)

    def same_until(self, position: int) -> int:
        """Below this position everything is read and changed as at the given one, whatever the
        tokens are."""
        if self.keys is not None and position < self.keys.tokens:
            return position + 1
        spans = [reading.spans for reading in self.taps.captures]
        for each in self.edits:
            spans.append(each.edit.selection.spans)
            if each.differs and len(spans[-1].within(position, position + 1)):
                return position + 1
        return min(each.next_bound(position) for each in spans)


def _derived(
    form: ProjectionForm | OutputsForm, held: Iterator[HeldVectors]
) -> RunProjection | RunOutputs:
    blocks = tuple(next(held) for _ in form.vectors)
    if isinstance(form, OutputsForm):
        return RunOutputs(form, blocks)
    return RunProjection(form, blocks)


def _turns(taps: RunTaps) -> list[dict[int, list[SiteKey]]]:
    """Of each edit its sites, by how many of the run's edits come before it there."""
    turns, before = [], Counter[SiteKey]()
    for edit in taps.edits:
        own: dict[int, list[SiteKey]] = {}
        for site in edit.sites:
            own.setdefault(before[site], []).append(site)
            before[site] += 1
        turns.append(own)
    return turns


def _condition(
    number: int,
    form: ConditionForm,
    direction: HeldVectors,
    state: torch.Tensor | None,
    taps: RunTaps,
    turns: list[dict[int, list[SiteKey]]],
) -> RunCondition:
    """Its edits are those that have its number."""
    site, own = SiteKey.of(form.site), []
    ends = [0]
    for edit, in_turn in zip(taps.edits, turns, strict=True):
        if edit.condition == number:
            own += [turn for turn, sites in in_turn.items() if site in sites]
            ends += [end for _, end in edit.selection.spans.ranges[-1:]]
    return RunCondition(form, site, direction, min(own, default=None), max(ends), state)


def _first_state(form: ConditionForm, device: torch.device) -> torch.Tensor | None:
    size = score_state(form.aggregator)
    return torch.zeros(size, dtype=torch.float64, device=device) if size else None
