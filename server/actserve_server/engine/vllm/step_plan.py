"""Plans a step: which rows of the batch are read or changed, at which sites, for which run.

Pure of vLLM. The caller says, for every run with taps in the final order of the batch, where its
rows lie and which absolute position the first has. Everything is decided by absolute position, so
chunked prefill, preemption and recomputation need no case of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from actserve_server.domain.positions import Spans
from actserve_server.domain.runs import Unembed
from actserve_server.engine.forms import Kernel
from actserve_server.engine.vllm.bank import Block, VectorBank
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, Layout, SiteKey
from actserve_server.engine.vllm.sharding import Shards
from actserve_server.engine.vllm.taps import CaptureWork, EditWork, RowsAt, StepPlan
from actserve_server.engine.vllm.wire import Edit, RunTaps

UNMATCHED, REUSED = -1.0, -2.0
"""Notes in place of a change: the token is none of those selected; the position came from the
prefix cache with its edit already made."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteEdit:
    """An edit at one of its sites."""

    number: int
    """Counts the run's edits, site by site: what its receipts are called."""
    edit: Edit
    block: Block
    """Of the edit's vectors in the bank."""


@dataclass(slots=True, eq=False)
class TappedRun:
    """A run with taps, as the worker keeps it while vLLM has the request."""

    taps: RunTaps
    edits: Mapping[SiteKey, list[SiteEdit]]
    """By site, in the order in which they apply."""
    blocks: Sequence[Block] = ()
    """Of the vectors of its edits, one for each."""
    reached: int = 0
    """Positions below this were computed for this run, or skipped and receipted."""

    @staticmethod
    def start(taps: RunTaps, bank: VectorBank) -> "TappedRun":
        """Holds the run's vectors in the bank, all or none. Raises as `VectorBank.hold`."""
        edits: dict[SiteKey, list[SiteEdit]] = {}
        blocks = bank.hold_all([edit.form.vectors for edit in taps.edits])
        number = 0
        for edit, block in zip(taps.edits, blocks, strict=True):
            for site in edit.sites:
                edits.setdefault(site, []).append(SiteEdit(number, edit, block))
                number += 1
        return TappedRun(taps, edits, blocks)

    def end(self, bank: VectorBank) -> None:
        """Lets go of the run's vectors."""
        for block in self.blocks:
            bank.release(block)


@dataclass(frozen=True, slots=True, eq=False)
class BatchRows:
    """Rows [row, row + count) of the batch are positions [position, position + count) of a run."""

    run: TappedRun
    row: int
    position: int
    count: int
    token_ids: np.ndarray
    """The tokens of these rows, int [count]."""
    next_ids: np.ndarray
    """The prompt tokens that come after each, int [count]; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a plan must know of the model and this rank."""

    layout: Layout
    head_width: int = 0
    shards: Mapping[SiteKey, Shards] = field(default_factory=dict)
    """Of the sites whose rows are split over ranks; empty without tensor parallelism."""

    def rows_at(self, site: SiteKey, index: torch.Tensor) -> RowsAt:
        return RowsAt(index, self.layout.sites[site].stream, self.shards.get(site))


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Captured rows of one site, of which logits or predictions are made after the pass."""

    site: SiteKey
    work: CaptureWork


@dataclass(slots=True, eq=False)
class RowBlock:
    """Rows of runs whose capture of this number reads the same sites in the same way."""

    number: int
    keys: np.ndarray
    positions: np.ndarray
    columns: list[Column]
    unembed: Unembed | None
    next_ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Receipts:
    """Says what edit `edits[i]` of run `keys[i]` did at `positions[i]`. All int64 [n]; `changes` is
    float32 [n, 2] on the model's device, as `EditWork.changes`."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray
    changes: torch.Tensor


@dataclass(slots=True, eq=False)
class RoutedStep:
    """A plan, and what is to be sent once it was carried out."""

    plan: StepPlan
    blocks: list[RowBlock]
    receipts: Receipts | None


def route(batch: Iterable[BatchRows], bank: VectorBank, model: Model) -> RoutedStep | None:
    """The step's plan, or None if no run of the batch has anything to do in it."""
    rows = list(batch)
    blocks, captures = _captures(rows, bank.device, model)
    edits, receipts = _edits(rows, bank, model)
    if not blocks and receipts is None:
        return None
    plan = StepPlan()
    # A capture reads what the edits of its own site have left.
    for key, site in model.layout.in_order({*captures, *edits}):
        for work in (*edits.get(key, ()), *captures.get(key, ())):
            plan.add(site.place, work)
    return RoutedStep(plan, blocks, receipts)


class _CaptureKind(NamedTuple):
    """Captures of which this is equal share one table and one gather a site."""

    number: int
    """Which of its run's captures it is."""
    sites: tuple[SiteKey, ...]
    unembed: Unembed | None


def _captures(
    rows: list[BatchRows], device: torch.device, model: Model
) -> tuple[list[RowBlock], dict[SiteKey, list[CaptureWork]]]:
    groups: dict[_CaptureKind, list[tuple[BatchRows, np.ndarray]]] = {}
    for item in rows:
        for number, reading in enumerate(item.run.taps.captures):
            positions = reading.spans.within(item.position, item.position + item.count)
            if len(positions):
                kind = _CaptureKind(number, reading.sites, reading.unembed)
                groups.setdefault(kind, []).append((item, positions))

    blocks: list[RowBlock] = []
    works: dict[SiteKey, list[CaptureWork]] = {}
    for kind, members in groups.items():
        indices = np.concatenate([item.row + at - item.position for item, at in members])
        index = torch.from_numpy(indices).to(device, non_blocking=True)
        keys = np.repeat(
            np.array([item.run.taps.key for item, _ in members], np.int64),
            [len(at) for _, at in members],
        )
        columns = []
        for site in kind.sites:
            source = FINAL_NORM if site == LOGITS else site
            work = CaptureWork(model.rows_at(source, index))
            works.setdefault(source, []).append(work)
            columns.append(Column(site, work))
        blocks.append(
            RowBlock(
                number=kind.number,
                keys=keys,
                positions=np.concatenate([at for _, at in members]),
                columns=columns,
                unembed=kind.unembed,
                next_ids=np.concatenate(
                    [item.next_ids[at - item.position] for item, at in members]
                ),
            )
        )
    return blocks, works


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that one kernel changes at one site, of many runs; for LINEAR of those with the same
    vectors."""

    edit: Edit
    indices: list[np.ndarray] = field(default_factory=list)
    noted: list[np.ndarray] = field(default_factory=list)
    offsets: list[np.ndarray] = field(default_factory=list)
    scalars: list[np.ndarray] = field(default_factory=list)

    def work(
        self, site: SiteKey, bank: VectorBank, model: Model, changes: torch.Tensor
    ) -> EditWork:
        edit, device = self.edit, bank.device
        offsets, scalars = np.concatenate(self.offsets), np.concatenate(self.scalars)
        heads = torch.tensor(edit.heads, device=device) if edit.heads else None
        if heads is not None and len(offsets) > 1:
            offsets, scalars = (np.repeat(each, len(heads), axis=0) for each in (offsets, scalars))
        vectors = bank.gather(offsets, edit.form.vectors.width)
        return EditWork(
            at=model.rows_at(site, _to(np.concatenate(self.indices), device)),
            kernel=edit.form.kernel,
            vectors=vectors,
            scalars=_to(scalars, device),
            heads=heads,
            head_width=model.head_width,
            changes=changes,
            noted=_to(np.concatenate(self.noted), device),
        )


class _ReceiptTable:
    """Collects a step's receipts."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, key: int, number: int, positions: np.ndarray, note: np.ndarray) -> np.ndarray:
        """Adds receipts with a first note each, and returns where they are."""
        first, self._count = self._count, self._count + len(positions)
        if len(positions):
            self._parts.append((key, number, positions, note))
        return np.arange(first, self._count)

    def receipts(self, device: torch.device) -> Receipts | None:
        if not self._parts:
            return None
        keys, numbers, positions, notes = zip(*self._parts, strict=True)
        counts = [len(at) for at in positions]
        changes = np.zeros((self._count, 2), np.float32)
        changes[:, 0] = np.concatenate(notes)
        return Receipts(
            keys=np.repeat(np.array(keys, np.int64), counts),
            edits=np.repeat(np.array(numbers, np.int64), counts),
            positions=np.concatenate(positions),
            changes=_to(changes, device),
        )


def _edits(
    rows: list[BatchRows], bank: VectorBank, model: Model
) -> tuple[dict[SiteKey, list[EditWork]], Receipts | None]:
    # By site and by which of its run's edits there it is: the first ones of all runs go together,
    # then the second ones.
    groups: dict[tuple[SiteKey, int], dict[tuple, _Group]] = {}
    table = _ReceiptTable()
    for item in rows:
        run, end = item.run, item.position + item.count
        for site, edits in run.edits.items():
            for turn, step in enumerate(edits):
                selection = step.edit.selection
                # A gap below the step is a prefix-cache hit. Of positions that are edited it holds
                # those alone that were edited equally: see `cache_salt.py`.
                skipped = selection.spans.within(run.reached, item.position)
                table.add(run.taps.key, step.number, skipped, np.full(len(skipped), REUSED))
                positions = selection.spans.within(item.position, end)
                matches = np.ones(len(positions), bool)
                if selection.token_ids is not None:
                    ids = item.token_ids[positions - item.position]
                    matches = np.isin(ids, [*selection.token_ids])
                note = np.where(matches, 0.0, UNMATCHED)
                noted = table.add(run.taps.key, step.number, positions, note)
                if matches.any():
                    parts = groups.setdefault((site, turn), {})
                    group = parts.setdefault(_shared(step), _Group(step.edit))
                    _add(group, step, item, positions[matches], noted[matches])
        run.reached = max(run.reached, end)

    receipts = table.receipts(bank.device)
    works: dict[SiteKey, list[EditWork]] = {}
    if receipts is not None:
        for site, turn in sorted(groups):
            for group in groups[site, turn].values():
                works.setdefault(site, []).append(group.work(site, bank, model, receipts.changes))
    return works, receipts


def _shared(step: SiteEdit) -> tuple:
    """Edits of which this is equal go through one kernel together."""
    form = step.edit.form
    own = (form.vectors.digest, form.scalars) if form.kernel is Kernel.LINEAR else ()
    return form.kernel, step.edit.heads, form.vectors.width, own


def _add(
    group: _Group, step: SiteEdit, item: BatchRows, positions: np.ndarray, noted: np.ndarray
) -> None:
    form, count = step.edit.form, len(positions)
    group.indices.append(item.row + positions - item.position)
    group.noted.append(noted)
    scalars = np.array([form.scalars], np.float32)
    if form.kernel is Kernel.LINEAR:
        group.offsets, group.scalars = [step.block.offsets[None]], [scalars]
        return
    which = np.zeros(count, np.int64)
    if form.vectors.count > 1:
        which = _ordinals(step.edit.selection.spans, positions)
    group.offsets.append(step.block.offsets[which][:, None])
    group.scalars.append(np.repeat(scalars, count, axis=0))


def _ordinals(spans: Spans, positions: np.ndarray) -> np.ndarray:
    """How many selected positions lie below each, int64."""
    below = [np.clip(positions - low, 0, high - low) for low, high in spans.ranges]
    return np.sum(below, axis=0)


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
