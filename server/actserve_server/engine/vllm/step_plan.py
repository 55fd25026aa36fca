"""Plans a step: which rows of the batch are read or changed, at which sites, for which run.

Pure of vLLM. The caller shows the batch in its final order, and which of its requests are runs with
taps. Everything is decided by absolute position, so chunked prefill, preemption and recomputation
need no case of their own.

`route` plans any step. `Planner` calls it where the batch has changed, and else moves the plan of
the step before on by one position: from one decode step to the next nothing else is different.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from actserve_server.domain.positions import NO_END
from actserve_server.domain.runs import Unembed
from actserve_server.engine.forms import Kernel, OutputsForm, ProjectionForm
from actserve_server.engine.vllm.bank import StepGather, VectorBank
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, SiteKey
from actserve_server.engine.vllm.network_rows import NetworkRows, RunOutputs
from actserve_server.engine.vllm.plan_patterns import PatternBlock, PatternPlan, PatternWork
from actserve_server.engine.vllm.plan_scores import ScorePlan, is_lost
from actserve_server.engine.vllm.step_batch import Batch, BatchRows, Model, index_of, to_device
from actserve_server.engine.vllm.tapped_run import RunCondition, RunEdit, RunProjection, TappedRun
from actserve_server.engine.vllm.taps import (
    CaptureWork,
    EditedRows,
    EditWork,
    Index,
    ScoreWork,
    StepPlan,
)

UNMATCHED, REUSED, LOST = -1.0, -2.0, -3.0
"""Notes in place of a change: the token is none of those selected; the position came from the
prefix cache with its edit already made; its condition has no score here."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Captured rows of one site, or what was made of them at the tap, or by the last one of the
    rows of several sites, or of queries where their keys are. Logits and predictions are made after
    the pass."""

    site: SiteKey
    work: CaptureWork | PatternWork


@dataclass(frozen=True, slots=True, eq=False)
class RowBlock:
    """Rows of runs whose capture of this number reads the same sites in the same way."""

    number: int
    keys: np.ndarray
    positions: np.ndarray
    columns: list[Column]
    derived: Unembed | RunProjection | RunOutputs | None
    """What is given in place of the rows; None too where it was made of patterns."""
    next_ids: np.ndarray | None
    """For `Unembed`, which alone needs them."""


@dataclass(frozen=True, slots=True, eq=False)
class Receipts:
    """Says what edit `edits[i]` of run `keys[i]` did at `positions[i]`, at all its sites. All int64
    [n]; `changes` is float32 [n, 4] on the model's device, as `EditedRows.changes`."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray
    changes: torch.Tensor
    blank: bool
    """Whether nothing was noted before the pass."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutedStep:
    """A plan, and what is to be sent once it was carried out."""

    plan: StepPlan
    blocks: list[RowBlock]
    receipts: Receipts | None
    keys: frozenset[int]
    """Of the runs that have work in it."""
    captures: Mapping[SiteKey, Sequence[CaptureWork]]
    """By the site that is read, as a pass reaches them."""

    @property
    def may_repeat(self) -> bool:
        """Whether nothing in it is of its own tokens or positions alone. A chunk of a prompt may
        have one token, as a decode step has, and then the next prompt token is another each time.
        """
        following = [each.next_ids for each in self.blocks if each.next_ids is not None]
        if any((ids >= 0).any() for ids in following):
            return False
        return self.receipts is None or self.receipts.blank


class Planner:
    """Plans one step after the other."""

    def __init__(self, bank: VectorBank, model: Model) -> None:
        self._bank = bank
        self._model = model
        self._last: _Steady | None = None
        self._moves = bank.moves

    def goes_on(self, batch: Batch) -> bool:
        """Whether the step is as the last one, a position further. Then `plan` only moves that on,
        and cannot fail."""
        last = self._last
        return last is not None and self._moves == self._bank.moves and last.goes_on(batch)

    def plan(self, batch: Batch, runs: Mapping[str, TappedRun]) -> RoutedStep | None:
        """The step's plan, or None if no run of the batch has anything to do in it."""
        if self._last is not None and self.goes_on(batch):
            return self._last.next()
        self.forget()
        found = list(batch.tapped(runs))
        self._moves = self._bank.moves
        routed = route((rows for _, rows in found), self._bank, self._model)
        self._last = _Steady.after(batch, found, routed)
        return routed

    def forget(self) -> None:
        """Plans the next step anew. To be called where a run begins or ends."""
        if self._last is not None:
            self._last.end()
        self._last = None


class _Steady:
    """A decode step, which the next may repeat one position further."""

    def __init__(
        self, batch: Batch, found: Sequence[tuple[int, BatchRows]], routed: RoutedStep | None
    ) -> None:
        count = len(batch.request_ids)
        self._request_ids = list(batch.request_ids)
        self._starts = np.array(batch.starts[: count + 1])
        self._which = np.array([index for index, _ in found], np.int64)
        self._runs = [rows.run for _, rows in found]
        self._next = np.array([rows.end for _, rows in found], np.int64)
        left = [rows.run.same_until(rows.position) - rows.end for _, rows in found]
        self._left = min(left, default=NO_END)
        """So many steps may be as this one."""
        self._routed = routed

    @staticmethod
    def after(
        batch: Batch, found: Sequence[tuple[int, BatchRows]], routed: RoutedStep | None
    ) -> "_Steady | None":
        """None if the step after this one is planned differently in any case."""
        if any(rows.count != 1 for _, rows in found):
            return None
        if routed is not None and not routed.may_repeat:
            return None
        return _Steady(batch, found, routed)

    def goes_on(self, batch: Batch) -> bool:
        count = len(self._request_ids)
        return (
            self._left > 0
            and batch.request_ids == self._request_ids
            and np.array_equal(batch.starts[: count + 1], self._starts)
            and np.array_equal(batch.computed[self._which], self._next)
        )

    def next(self) -> RoutedStep | None:
        self._next += 1
        self._left -= 1
        step = self._routed
        if step is None:
            return None
        blocks = [replace(block, positions=block.positions + 1) for block in step.blocks]
        receipts = step.receipts
        if receipts is not None:
            # What was sent of the last step has left this table, or is about to in the same stream.
            receipts.changes.zero_()
            receipts = replace(receipts, positions=receipts.positions + 1)
        self._routed = replace(step, blocks=blocks, receipts=receipts)
        return self._routed

    def end(self) -> None:
        for run, reached in zip(self._runs, self._next.tolist(), strict=True):
            run.move_to(reached)


# A step of any kind.


def route(batch: Iterable[BatchRows], bank: VectorBank, model: Model) -> RoutedStep | None:
    """The step's plan, or None if no run of the batch has anything to do in it."""
    rows = list(batch)
    plan = StepPlan()
    blocks, captures = _captures(rows, bank, model)
    patterns = PatternPlan(model)
    for item in rows:
        patterns.add(item)
    blocks += map(_pattern_block, patterns.blocks)
    edits, receipts, scoring = _edits(rows, bank, model, plan)
    if not blocks and receipts is None and not scoring and not patterns.keys:
        return None
    # A capture reads what the edits of its own site have left.
    for key, site in model.layout.in_order({*captures, *patterns.works, *edits}):
        for works in (edits, captures, patterns.works):
            for work in works.get(key, ()):
                plan.add(site.place, work)
    keys = {*scoring, *patterns.keys, *(key for block in blocks for key in block.keys.tolist())}
    if receipts is not None:
        keys.update(receipts.keys.tolist())
    in_order = {key: captures[key] for key, _ in model.layout.in_order(captures)}
    return RoutedStep(plan, blocks, receipts, frozenset(keys), in_order)


class _CaptureKind(NamedTuple):
    """Captures of which this is equal share one table and one gather a site."""

    number: int
    """Which of its run's captures it is."""
    sites: tuple[SiteKey, ...]
    derived: Hashable
    """What is made of the rows."""


def _captures(
    rows: list[BatchRows], bank: VectorBank, model: Model
) -> tuple[list[RowBlock], dict[SiteKey, list[CaptureWork]]]:
    groups: dict[_CaptureKind, list[tuple[BatchRows, np.ndarray]]] = {}
    for item in rows:
        for number, reading in enumerate(item.run.taps.captures):
            positions = reading.spans.within(item.position, item.end)
            if len(positions) and not reading.of_patterns:
                derived = reading.derived
                if isinstance(derived, ProjectionForm | OutputsForm):
                    derived = derived.key
                kind = _CaptureKind(number, reading.sites, derived)
                groups.setdefault(kind, []).append((item, positions))

    blocks: list[RowBlock] = []
    works: dict[SiteKey, list[CaptureWork]] = {}
    for kind, members in groups.items():
        index = index_of(
            np.concatenate([item.row + at - item.position for item, at in members]), bank.device
        )
        keys = np.array([item.run.taps.key for item, _ in members], np.int64)
        run = members[0][0].run
        derived = run.derived.get(kind.number) or run.taps.captures[kind.number].derived
        assert derived is None or isinstance(derived, Unembed | RunProjection | RunOutputs)
        columns = []
        for site, derive in _read_sites(kind.sites, derived, bank, model):
            source = FINAL_NORM if site == LOGITS else site
            work = CaptureWork(model.rows_at(source, index), derive)
            works.setdefault(source, []).append(work)
            columns.append(Column(site, work))
        if isinstance(derived, RunOutputs):
            columns = columns[-1:]
        following = None
        if isinstance(derived, Unembed):
            following = np.concatenate([item.next_ids(at) for item, at in members])
        blocks.append(
            RowBlock(
                number=kind.number,
                keys=np.repeat(keys, [len(at) for _, at in members]),
                positions=np.concatenate([at for _, at in members]),
                columns=columns,
                derived=derived,
                next_ids=following,
            )
        )
    return blocks, works


def _read_sites(
    sites: Iterable[SiteKey],
    derived: Unembed | RunProjection | RunOutputs | None,
    bank: VectorBank,
    model: Model,
) -> Iterator[tuple[SiteKey, Callable[[torch.Tensor], torch.Tensor | None] | None]]:
    """Each site, and what is made of its rows at the tap."""
    if isinstance(derived, RunOutputs):
        networks = NetworkRows(derived, bank, model.widths)
        for site, _ in model.layout.in_order(sites):
            yield site, partial(networks.take, site=site)
        return
    for site in sites:
        if isinstance(derived, RunProjection) and site != LOGITS:
            yield site, partial(derived.of, bank=bank)
        else:
            yield site, None


def _pattern_block(block: PatternBlock) -> RowBlock:
    return RowBlock(
        number=block.number,
        keys=np.full(len(block.positions), block.key, np.int64),
        positions=block.positions,
        columns=[Column(site, work) for site, work in block.columns.items()],
        derived=None,
        next_ids=None,
    )


class _EditKind(NamedTuple):
    """Edits of which this is equal go through one kernel together, at each of their sites."""

    turn: int
    kernel: Kernel
    heads: tuple[int, ...]
    width: int
    own: tuple[object, ...] | None
    """LINEAR and FEATURES go through the kernel with one set of matrices and scalars: all that
    tells them from others."""
    conditional: bool
    """Whether they act only where a condition is met."""


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """Rows of one run that one of its edits changes in this step."""

    step: RunEdit
    rows: np.ndarray
    positions: np.ndarray
    noted: np.ndarray


class _ReceiptTable:
    """Collects a step's receipts."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, np.ndarray, float | np.ndarray | None]] = []
        self._count = 0

    def add(
        self, key: int, number: int, positions: np.ndarray, note: float | np.ndarray | None = None
    ) -> np.ndarray:
        """Adds receipts, with a first note for all or for each, and returns where they are."""
        first, self._count = self._count, self._count + len(positions)
        if len(positions):
            self._parts.append((key, number, positions, note))
        return np.arange(first, self._count)

    def receipts(self, device: torch.device) -> Receipts | None:
        if not self._parts:
            return None
        keys, numbers, positions, notes = zip(*self._parts, strict=True)
        counts = [len(at) for at in positions]
        changes, end = np.zeros((self._count, 4), np.float32), 0
        for count, note in zip(counts, notes, strict=True):
            start, end = end, end + count
            if note is not None:
                changes[start:end, 0] = note
        return Receipts(
            keys=np.repeat(np.array(keys, np.int64), counts),
            edits=np.repeat(np.array(numbers, np.int64), counts),
            positions=np.concatenate(positions),
            changes=to_device(changes, device),
            blank=not changes.any(),
        )


def _edits(
    rows: list[BatchRows], bank: VectorBank, model: Model, plan: StepPlan
) -> tuple[Mapping[SiteKey, Sequence[EditWork | ScoreWork]], Receipts | None, Set[int]]:
    """What edits do at each site, and what decides whether they do, in order; their receipts; and
    the keys of the runs for which anything is scored."""
    # Edits of equal sites lie together: many runs at the same sites are one entry here.
    members: dict[tuple[_EditKind, tuple[SiteKey, ...]], list[_Member]] = {}
    table, scores, gather = _ReceiptTable(), ScorePlan(), StepGather(bank)
    for item in rows:
        decided: dict[RunCondition, list[tuple[np.ndarray, np.ndarray]]] = {}
        for step in item.run.edits:
            member = _member(item, step, table)
            if len(member.rows):
                for turn, sites in step.turns:
                    members.setdefault((_kind(step, turn), sites), []).append(member)
                if step.condition is not None:
                    decided.setdefault(step.condition, []).append((member.rows, member.noted))
        for condition in item.run.conditions:
            scores.add(item, condition, decided.get(condition, ()))
        item.run.step(item.position, item.end)

    receipts = table.receipts(bank.device)
    nothing = torch.empty((0, 4), device=bank.device)
    changes = nothing if receipts is None else receipts.changes
    works = _edit_works(members, gather, bank.device, model, changes, plan)
    for site, turn, work in scores.works(gather, bank.device, model, changes):
        works.setdefault(site, []).append((turn, 0, work))
    in_order = {
        site: [work for *_, work in sorted(each, key=lambda item: item[:2])]
        for site, each in works.items()
    }
    return in_order, receipts, scores.keys


def _member(item: BatchRows, step: RunEdit, table: _ReceiptTable) -> _Member:
    key, selection = item.run.taps.key, step.edit.selection
    if item.run.reached < item.position:
        # A gap below the step is a prefix-cache hit. Of positions that are edited it holds those
        # alone that were edited equally: see `cache_salt.py`.
        skipped = selection.spans.within(item.run.reached, item.position)
        table.add(key, step.number, skipped, REUSED)
    positions = selection.spans.within(item.position, item.end)
    if is_lost(item, step.condition):
        table.add(key, step.number, positions, LOST)
        positions = positions[:0]
    if selection.token_ids is None:
        noted = table.add(key, step.number, positions)
    else:
        matches = np.isin(item.tokens[positions], [*selection.token_ids])
        note = np.where(matches, 0.0, UNMATCHED)
        noted = table.add(key, step.number, positions, note)[matches]
        positions = positions[matches]
    return _Member(step, item.row + positions - item.position, positions, noted)


def _edit_works(
    members: Mapping[tuple[_EditKind, tuple[SiteKey, ...]], list[_Member]],
    gather: StepGather,
    device: torch.device,
    model: Model,
    changes: torch.Tensor,
    plan: StepPlan,
) -> dict[SiteKey, list[tuple[int, int, EditWork | ScoreWork]]]:
    """Of each site (turn, 1, work): what is scored at a turn comes before its edits."""
    works: dict[SiteKey, list[tuple[int, int, EditWork | ScoreWork]]] = {}
    at_site: dict[SiteKey, dict[_EditKind, list[list[_Member]]]] = {}
    for (kind, sites), each in members.items():
        for site in sites:
            at_site.setdefault(site, {}).setdefault(kind, []).append(each)
    # Sites with the same members share their tables.
    made: dict[tuple[int, ...], tuple[Index, EditedRows]] = {}
    for site, kinds in at_site.items():
        # The first edits of all runs at a site go together, then the second ones.
        for kind in sorted(kinds, key=lambda kind: kind.turn):
            together = tuple(map(id, kinds[kind]))
            if together not in made:
                every = [member for each in kinds[kind] for member in each]
                edited = _edited(kind, every, gather, device, model, changes, plan)
                index = index_of(np.concatenate([member.rows for member in every]), device)
                made[together] = index, edited
            index, edited = made[together]
            work = EditWork(model.rows_at(site, index), edited)
            works.setdefault(site, []).append((kind.turn, 1, work))
    return works


def _kind(step: RunEdit, turn: int) -> _EditKind:
    form = step.edit.form
    own = form.key if form.kernel in (Kernel.LINEAR, Kernel.FEATURES) else None
    return _EditKind(
        turn, form.kernel, step.edit.heads, form.vectors.width, own, step.condition is not None
    )


def _edited(
    kind: _EditKind,
    members: list[_Member],
    gather: StepGather,
    device: torch.device,
    model: Model,
    changes: torch.Tensor,
    plan: StepPlan,
) -> EditedRows:
    counts = [len(member.rows) for member in members]
    scalars = np.array([member.step.edit.form.scalars for member in members], np.float32)
    heads = torch.tensor(kind.heads, device=device) if kind.heads else None
    if kind.own is not None:
        vectors, scalars = gather.block(members[0].step.block), scalars[:1]
    else:
        offsets = np.concatenate([_offsets(member) for member in members])[:, None]
        scalars = np.repeat(scalars, counts, axis=0)
        if (offsets == offsets[0]).all() and (scalars == scalars[0]).all():
            offsets, scalars = offsets[:1], scalars[:1]
        elif kind.heads:
            offsets, scalars = (
                np.repeat(each, len(kind.heads), axis=0) for each in (offsets, scalars)
            )
        vectors = gather.vectors(offsets, kind.width)
    return EditedRows(
        kernel=kind.kernel,
        vectors=vectors,
        scalars=to_device(scalars, device),
        heads=heads,
        head_width=model.head_width,
        changes=changes,
        noted=index_of(np.concatenate([member.noted for member in members]), device),
        unsettled=plan.unsettled,
        conditional=kind.conditional,
        features=_features(members[0].step, gather.bank, device),
    )


def _features(
    step: RunEdit, bank: VectorBank, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What reads the features of rows, if the edit changes any by what they are."""
    reads = step.reads
    if reads is None:
        return None
    columns = torch.tensor(step.edit.form.columns, device=device)
    return lambda rows: reads.of(rows, bank).index_select(1, columns)


def _offsets(member: _Member) -> np.ndarray:
    """Where the vector of each row begins."""
    offsets = member.step.block.offsets
    if len(offsets) == 1:
        return np.repeat(offsets, len(member.rows))
    return offsets[member.step.edit.selection.spans.ordinals(member.positions)]
