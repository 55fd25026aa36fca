"""Plans a step: which rows of the batch are read or changed, at which points, for which run.

Pure of vLLM. The caller says, for every run with taps in the final order of the batch, where its
rows lie and which absolute position the first has. Everything is decided by absolute position, so
chunked prefill, preemption and recomputation need no case of their own.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.points import Stage, Tap
from actserve_server.engine.vllm.taps import CaptureWork, EditWork, StepPlan
from actserve_server.engine.vllm.wire import RunTaps


@dataclass(slots=True, eq=False)
class TappedRun:
    """A run with taps, as the worker keeps it while vLLM has the request."""

    taps: RunTaps
    slots: tuple[int, ...]
    """Of each edit's delta in the vector bank."""
    reached: int = 0
    """Positions below this were computed for this run, or skipped and receipted."""


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Rows [row, row + count) of the batch are positions [position, position + count) of a run."""

    run: TappedRun
    row: int
    position: int
    count: int


@dataclass(slots=True, eq=False)
class RowBlock:
    """Captured rows of runs that read the same sites: `data` is [taps, rows, width]."""

    taps: tuple[Tap, ...]
    keys: np.ndarray
    positions: np.ndarray
    data: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Receipts:
    """Says that edit `edits[i]` of run `keys[i]` was made at `positions[i]`, or that the position
    came with its edit from the prefix cache. All int64 [n]."""

    keys: np.ndarray
    edits: np.ndarray
    positions: np.ndarray


@dataclass(slots=True, eq=False)
class RoutedStep:
    """A plan, and what is to be sent once it was carried out."""

    plan: StepPlan
    blocks: list[RowBlock]
    receipts: Receipts | None


def route(
    batch: Iterable[BatchRows], bank: VectorBank, width: int, dtype: torch.dtype
) -> RoutedStep | None:
    """The step's plan, or None if no run of the batch has anything to do in it."""
    rows = list(batch)
    blocks, captures = _captures(rows, bank.device, width, dtype)
    edits, receipts = _edits(rows, bank)
    if not blocks and receipts is None:
        return None
    plan = StepPlan()
    # Within a point stages follow each other, and a capture reads what the edits of its own stage
    # have left, so every edit of a stage goes in before its captures.
    for point in sorted({tap.point for tap in (*captures, *edits)}):
        for stage in Stage:
            tap = Tap(point, stage)
            if tap in edits:
                plan.add(point, edits[tap])
            for work in captures.get(tap, ()):
                plan.add(point, work)
    return RoutedStep(plan, blocks, receipts)


def _captures(
    rows: list[BatchRows], device: torch.device, width: int, dtype: torch.dtype
) -> tuple[list[RowBlock], dict[Tap, list[CaptureWork]]]:
    # Runs that read the same sites share one table, one gather a site and one block.
    groups: dict[tuple[Tap, ...], list[tuple[BatchRows, np.ndarray]]] = {}
    for item in rows:
        taps = item.run.taps
        if not taps.capture_taps:
            continue
        positions = taps.capture_spans.within(item.position, item.position + item.count)
        if len(positions):
            groups.setdefault(taps.capture_taps, []).append((item, positions))

    blocks: list[RowBlock] = []
    works: dict[Tap, list[CaptureWork]] = {}
    for taps, members in groups.items():
        indices = np.concatenate([item.row + at - item.position for item, at in members])
        index = torch.from_numpy(indices).to(device, non_blocking=True)
        data = torch.empty((len(taps), len(indices), width), dtype=dtype, device=device)
        keys = np.repeat(
            np.array([item.run.taps.key for item, _ in members], np.int64),
            [len(at) for _, at in members],
        )
        blocks.append(RowBlock(taps, keys, np.concatenate([at for _, at in members]), data))
        for slot, tap in enumerate(taps):
            work = CaptureWork(index, data[slot], with_residual=tap.stage != Stage.BRANCH)
            works.setdefault(tap, []).append(work)
    return blocks, works


def _edits(rows: list[BatchRows], bank: VectorBank) -> tuple[dict[Tap, EditWork], Receipts | None]:
    by_tap: dict[Tap, list[tuple[np.ndarray, int]]] = {}
    receipts: list[tuple[int, int, np.ndarray]] = []
    for item in rows:
        run, end = item.run, item.position + item.count
        for number, (edit, slot) in enumerate(zip(run.taps.edits, run.slots, strict=True)):
            # A gap below the step is a prefix-cache hit: the cache salt makes it equally edited.
            skipped = edit.spans.within(run.reached, item.position)
            positions = edit.spans.within(item.position, end)
            receipts += [(run.taps.key, number, at) for at in (skipped, positions) if len(at)]
            if len(positions):
                indices = item.row + positions - item.position
                by_tap.setdefault(edit.tap, []).append((indices, slot))
        run.reached = max(run.reached, end)

    works: dict[Tap, EditWork] = {}
    for tap, parts in by_tap.items():
        counts = [len(indices) for indices, _ in parts]
        slots = np.repeat(np.array([slot for _, slot in parts], np.int64), counts)
        index = torch.from_numpy(np.concatenate([indices for indices, _ in parts]))
        works[tap] = EditWork(
            index.to(bank.device, non_blocking=True), bank.gather(torch.from_numpy(slots))
        )
    if not receipts:
        return works, None
    counts = [len(positions) for _, _, positions in receipts]
    return works, Receipts(
        keys=np.repeat(np.array([key for key, _, _ in receipts], np.int64), counts),
        edits=np.repeat(np.array([number for _, number, _ in receipts], np.int64), counts),
        positions=np.concatenate([positions for _, _, positions in receipts]),
    )
