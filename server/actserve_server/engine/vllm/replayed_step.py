"""Takes what a replayed step has read and changed out of the static tables.

The plan of the step is that of any other: only who carries it out is different. What is otherwise
made of rows at a tap is made here of the rows in the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.engine.vllm.bank import ALL_ROWS
from actserve_server.engine.vllm.resident_runs import ResidentRuns
from actserve_server.engine.vllm.step_batch import Batch, Model, to_device
from actserve_server.engine.vllm.step_plan import Receipts, RoutedStep
from actserve_server.engine.vllm.tap_tables import TapTables
from actserve_server.engine.vllm.tapped_run import TappedRun
from actserve_server.engine.vllm.taps import CaptureWork, Index, Part


@dataclass(frozen=True, slots=True, eq=False)
class _Noted:
    """Receipts of edits that were made in the step."""

    receipts: torch.Tensor
    """Which of them they are, int64 [n]."""
    at: torch.Tensor
    """Where the tables note them, int64 [n]: edit times rows plus row."""
    sites: torch.Tensor
    """At how many each is made, float32 [n]."""


class ReplayedStep:
    """Of a step and of those that go on like it."""

    def __init__(
        self,
        routed: RoutedStep,
        batch: Batch,
        runs: Mapping[str, TappedRun],
        residents: ResidentRuns,
        model: Model,
    ) -> None:
        self._routed = routed
        self._residents = residents
        self._captures = [
            (residents.output_of(site), model.widths[site], work)
            for site, works in routed.captures.items()
            for work in works
        ]
        self._noted = None
        if routed.receipts is not None:
            self._noted = _noted(routed.receipts, batch, runs, residents.tables)

    def take(self) -> torch.Tensor:
        """Completes the captures and receipts of the plan, after the pass. Whether the tables have
        all of them from this very pass, bool [], on the model's device: where not, nothing of the
        step may be used."""
        tables, step = self._residents.tables, self._residents.step
        half = step % 2
        proven = torch.ones((), dtype=torch.bool, device=tables.clock.device)
        for slot, width, work in self._captures:
            stamps = _picked(tables.row_stamps[half, slot], work.at.index)
            proven &= (stamps == step).all()
            self._give(work, _picked(tables.rows[half, slot, :, :width], work.at.index))
        noted, receipts = self._noted, self._routed.receipts
        if noted is not None and receipts is not None:
            changes = tables.changes[half].flatten(0, 1).index_select(0, noted.at)
            stamps = tables.change_stamps[half].flatten().index_select(0, noted.at)
            proven &= ((stamps == step) & (changes[:, 2] == noted.sites)).all()
            receipts.changes[:, :3].index_copy_(0, noted.receipts, changes)
        return proven

    def _give(self, work: CaptureWork, rows: torch.Tensor) -> None:
        work.take(Part(ALL_ROWS, work.at, rows, rows, None))


def _picked(table: torch.Tensor, index: Index) -> torch.Tensor:
    if isinstance(index, range):
        # A copy, since the pass after the next one writes there.
        return table.narrow(0, index.start, len(index)).clone()
    return table.index_select(0, index)


def _noted(
    receipts: Receipts, batch: Batch, runs: Mapping[str, TappedRun], tables: TapTables
) -> _Noted:
    at = np.full(len(receipts.keys), -1, np.int64)
    sites = np.zeros(len(receipts.keys), np.float32)
    for _, item in batch.tapped(runs):
        own = receipts.keys == item.run.taps.key
        # Others are of positions that came from the prefix cache.
        own &= (receipts.positions >= item.position) & (receipts.positions < item.end)
        rows = item.row + receipts.positions[own] - item.position
        at[own] = receipts.edits[own] * tables.sizes.rows + rows
        counts = np.array([len(edit.sites) for edit in item.run.taps.edits], np.float32)
        sites[own] = counts[receipts.edits[own]]
    (made,) = np.nonzero(at >= 0)
    device = tables.clock.device
    return _Noted(
        to_device(made, device), to_device(at[made], device), to_device(sites[made], device)
    )
