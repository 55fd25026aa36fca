"""Fills the static tables of taps inside CUDA graphs, and says what does not go through them.

A run takes a slot when it begins: what it changes and reads lies there until it ends. A step then
writes whose rows its batch has, and where the next step is the same a position further, nothing but
the number of the step: the device counts positions on by itself.

What cannot go this way is told in words, for the log and for tests, and goes through the taps that
run Python, piece by piece. Nothing is served in part: either every run with taps of a batch goes
through the tables or none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.engine.forms import Kernel
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.layout import FINAL_NORM, LOGITS, Layout, SiteKey
from actserve_server.engine.vllm.step_batch import Batch, Model, to_device
from actserve_server.engine.vllm.tap_tables import NOBODY, SCALARS, WIDEST, TapSizes, TapTables
from actserve_server.engine.vllm.tapped_run import TappedRun
from actserve_server.engine.vllm.wire import Edit, Reading, RunTaps

MAX_RANK = 16
"""Of a projection. Its matrix is read once for every row, where the other taps read it once for
all."""


@dataclass(slots=True, eq=False)
class _Resident:
    """A run that has a slot."""

    slot: int
    run: TappedRun
    reads: frozenset[SiteKey]
    since: int
    """The tables are right from this position on: of more ranges than they have room for, the first
    ones are left out."""


class ResidentRuns:
    """Which runs are in the tables."""

    def __init__(self, tables: TapTables, model: Model, bank: VectorBank) -> None:
        self.tables = tables
        self.step = 0
        """The number of the last step."""
        self._model = model
        self._bank = bank
        self._moves = bank.moves
        layout = model.layout
        self._numbers = {key: n for n, (key, _) in enumerate(layout.in_order(layout.sites))}
        self._residents: dict[str, _Resident] = {}
        self._free = list(range(tables.sizes.runs))[::-1]
        self._free_outputs = list(range(tables.sizes.slots))[::-1]
        self._readers = Counter[SiteKey]()
        self._output_of: dict[SiteKey, int] = {}

    def begin(self, request_id: str, run: TappedRun) -> str:
        """Gives the run a slot. Says why it has none; then nothing is changed."""
        sizes = self.tables.sizes
        if why := why_not(run.taps, self._model, sizes):
            return why
        if not self._free:
            return f"all {sizes.runs} slots for runs are taken"
        reads = frozenset(map(source_of, (s for each in run.taps.captures for s in each.sites)))
        new = [site for site in reads if site not in self._output_of]
        if len(new) > len(self._free_outputs):
            free = len(self._free_outputs)
            return f"{len(new)} more sites are read, and {free} of {sizes.slots} slots are free"
        resident = _Resident(self._free.pop(), run, reads, _since(run.taps, sizes.spans))
        self._residents[request_id] = resident
        self._readers.update(reads)
        for site in new:
            self._output_of[site] = self._free_outputs.pop()
        if new:
            self._write_outputs()
        self._write_run(resident)
        return ""

    def end(self, request_id: str) -> None:
        """A run that has none is passed over."""
        resident = self._residents.pop(request_id, None)
        if resident is None:
            return
        self._free.append(resident.slot)
        self._readers.subtract(resident.reads)
        for site in [site for site in resident.reads if not self._readers[site]]:
            del self._readers[site]
            self._free_outputs.append(self._output_of.pop(site))

    def why_not(self, batch: Batch, runs: Mapping[str, TappedRun]) -> str:
        """Why the batch cannot go through the tables; empty if it can."""
        count = len(batch.request_ids)
        rows, room = int(batch.starts[count]), self.tables.sizes.rows
        if rows > room:
            return f"it has {rows} rows, and the tables have room for {room}"
        for index, request_id in enumerate(batch.request_ids):
            if request_id not in runs:
                continue
            resident = self._residents.get(request_id)
            if resident is None:
                return "it has a run that is not in the tables"
            if int(batch.computed[index]) < resident.since:
                return "it has a run of which the tables hold later positions alone"
        return ""

    def output_of(self, site: SiteKey) -> int:
        """In which slot rows of a site are that some run reads."""
        return self._output_of[site]

    def write(self, batch: Batch, runs: Mapping[str, TappedRun]) -> None:
        """Before a step whose batch is not the last one's: whose rows it has."""
        rows = self.tables.sizes.rows
        run_of = np.full(rows, NOBODY, np.int32)
        position_of = np.zeros(rows, np.int64)
        for index, item in batch.tapped(runs):
            here = slice(item.row, item.row + item.count)
            run_of[here] = self._residents[batch.request_ids[index]].slot
            position_of[here] = np.arange(item.position, item.end)
        self._put(self.tables.row_run, run_of)
        self._put(self.tables.row_position, position_of)
        if self._moves != self._bank.moves:
            self._moves = self._bank.moves
            for resident in self._residents.values():
                self._write_vectors(resident)
        self.step += 1
        self._put(self.tables.clock, np.array([self.step, self.step], np.int64))

    def go_on(self) -> None:
        """Before a step that is the last one a position further, with the bank as it was."""
        self.step += 1
        self.tables.clock[:1].add_(1)

    def clear(self) -> None:
        """Before a pass in which no row is read or changed: no row belongs to any run."""
        self.tables.row_run.fill_(NOBODY)

    def _write_run(self, resident: _Resident) -> None:
        tables, sizes, slot = self.tables, self.tables.sizes, resident.slot
        edits_at = np.zeros(sizes.sites, np.int32)
        captures_at = np.zeros(sizes.sites, np.int32)
        edit_spans = np.zeros((sizes.edits, sizes.spans, 2), np.int64)
        capture_spans = np.zeros((sizes.captures, sizes.spans, 2), np.int64)
        forms = np.zeros((sizes.edits, 3), np.int32)
        scalars = np.zeros((sizes.edits, SCALARS), np.float32)
        for number, edit in enumerate(resident.run.taps.edits):
            for site in edit.sites:
                edits_at[self._numbers[site]] |= 1 << number
            _fill(edit_spans[number], edit.selection.spans.ranges)
            form = edit.form
            forms[number] = form.kernel, form.vectors.count, form.vectors.width
            own = _scalars(edit)
            scalars[number, : len(own)] = own
        for number, reading in enumerate(resident.run.taps.captures):
            for site in reading.sites:
                captures_at[self._numbers[source_of(site)]] |= 1 << number
            _fill(capture_spans[number], reading.spans.ranges)
        self._put(tables.edits_at[slot], edits_at)
        self._put(tables.captures_at[slot], captures_at)
        self._put(tables.edit_spans[slot], edit_spans)
        self._put(tables.capture_spans[slot], capture_spans)
        self._put(tables.forms[slot], forms)
        self._put(tables.scalars[slot], scalars)
        self._write_vectors(resident)

    def _write_vectors(self, resident: _Resident) -> None:
        sizes = self.tables.sizes
        starts = np.zeros(sizes.edits, np.int64)
        for number, step in enumerate(resident.run.edits):
            form, spans = step.edit.form, step.edit.selection.spans
            starts[number] = step.block.start
            if form.kernel is Kernel.REPLACE and form.vectors.count > 1:
                # Those of the ranges that are left out come first.
                left_out = spans.ranges[: -sizes.spans]
                starts[number] += form.vectors.width * sum(high - low for low, high in left_out)
        self._put(self.tables.vectors_at[resident.slot], starts)

    def _write_outputs(self) -> None:
        slots = np.full(self.tables.sizes.sites, NOBODY, np.int32)
        for site, slot in self._output_of.items():
            slots[self._numbers[site]] = slot
        self._put(self.tables.slot_of, slots)

    def _put(self, table: torch.Tensor, values: np.ndarray) -> None:
        # In the stream of the steps, so after the last one has read it.
        table.copy_(to_device(values, table.device), non_blocking=True)


def places_of(layout: Layout) -> Iterator[tuple[int, tuple[bool, ...]]]:
    """Of each place, the number of its first site in the tables, and which of its sites are of the
    stream."""
    first = 0
    for place in range(layout.place_count):
        sites = [site for _, site in layout.in_order(layout.sites) if site.place == place]
        yield first, tuple(site.stream for site in sites)
        first += len(sites)


def source_of(site: SiteKey) -> SiteKey:
    """Of which site the rows are read."""
    return FINAL_NORM if site == LOGITS else site


def why_not(taps: RunTaps, model: Model, sizes: TapSizes) -> str:
    """Why a run cannot go through tables of these sizes, whatever else is there; empty if it
    can."""
    if taps.conditions:
        return "conditions decide over sites and tokens"
    for name, count, room in (
        ("edits", len(taps.edits), sizes.edits),
        ("captures", len(taps.captures), sizes.captures),
    ):
        if count > room:
            return f"the run has {count} {name}, and there is room for {room}"
    for why in (_edit_why_not(each, model) for each in taps.edits):
        if why:
            return why
    for why in (_capture_why_not(each, model, sizes) for each in taps.captures):
        if why:
            return why
    return ""


def _edit_why_not(edit: Edit, model: Model) -> str:
    form, count, width = edit.form, edit.form.vectors.count, edit.form.vectors.width
    if edit.heads:
        return "an edit is of heads"
    if len(set(edit.sites)) < len(edit.sites):
        return "an edit changes a site twice"
    if edit.selection.token_ids is not None:
        return "an edit is where certain tokens are"
    if form.reads is not None:
        return "an edit reads features"
    if form.kernel is Kernel.LINEAR and count > 2 * MAX_RANK:
        return f"a projection has {count // 2} directions, more than the {MAX_RANK} that fit"
    if form.kernel is Kernel.FEATURES and count > SCALARS:
        return f"an edit changes {count} features, more than the {SCALARS} that fit"
    for site in edit.sites:
        if site in model.shards:
            return f"rows of {site.site} are split over ranks"
        if model.widths[site] > WIDEST:
            wide = model.widths[site]
            return f"rows of {site.site} are {wide} wide, more than the {WIDEST} that fit"
        if width not in (1, model.widths[site]):
            return f"vectors {width} wide are not of {site.site}"
    return ""


def _capture_why_not(reading: Reading, model: Model, sizes: TapSizes) -> str:
    if reading.of_patterns:
        return "patterns are made of the keys of every position"
    for site in map(source_of, reading.sites):
        if site in model.shards:
            return f"rows of {site.site} are split over ranks"
        room, wide = min(sizes.width, WIDEST), model.widths[site]
        if wide > room:
            return f"rows of {site.site} are {wide} wide, and there is room for {room}"
    return ""


def _scalars(edit: Edit) -> tuple[float, ...]:
    if edit.form.kernel is Kernel.FEATURES:
        return edit.form.scalars[len(edit.form.scalars) // 2 :]  # Every gain is one.
    return edit.form.scalars


def _since(taps: RunTaps, room: int) -> int:
    spans = [each.selection.spans for each in taps.edits] + [each.spans for each in taps.captures]
    return max((each.ranges[-room - 1][1] for each in spans if len(each.ranges) > room), default=0)


def _fill(table: np.ndarray, ranges: Sequence[tuple[int, int]]) -> None:
    last = ranges[-len(table) :]
    if last:
        table[: len(last)] = last
