"""A run with taps, as the worker keeps it from one step to the next."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from actserve_server.engine.forms import Kernel, ProjectionForm
from actserve_server.engine.vllm.bank import HeldVectors, VectorBank
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.project_rows import project
from actserve_server.engine.vllm.wire import Edit, RunTaps


@dataclass(frozen=True, slots=True, eq=False)
class RunEdit:
    """An edit of a run."""

    number: int
    """Which of the run's edits it is: what its receipts are called."""
    edit: Edit
    block: HeldVectors
    """Of the edit's vectors in the bank."""
    turns: tuple[tuple[int, tuple[SiteKey, ...]], ...]
    """Its sites, by how many of the run's edits come before it there."""

    @property
    def differs(self) -> bool:
        """Whether what it does depends on the token, or differs from position to position."""
        form = self.edit.form
        by_position = form.kernel is Kernel.REPLACE and form.vectors.count > 1
        return by_position or self.edit.selection.token_ids is not None


@dataclass(frozen=True, slots=True, eq=False)
class RunProjection:
    """What one of a run's captures gives in place of rows, and where its vectors are."""

    form: ProjectionForm
    directions: HeldVectors
    offsets: HeldVectors

    def of(self, rows: torch.Tensor, bank: VectorBank) -> torch.Tensor:
        """What it gives in place of rows, float32 [rows, width of `Projected`]."""
        return project(rows, self.form, bank.rows(self.directions), bank.rows(self.offsets))


@dataclass(slots=True, eq=False)
class TappedRun:
    """A run with taps, as the worker keeps it while vLLM has the request."""

    taps: RunTaps
    edits: tuple[RunEdit, ...]
    projections: Mapping[int, RunProjection]
    """By the number of the capture."""
    reached: int = 0
    """Positions below this were computed for this run, or skipped and receipted."""

    @staticmethod
    def start(taps: RunTaps, bank: VectorBank) -> "TappedRun":
        """Holds the run's vectors in the bank. Raises as `VectorBank.hold`, and then holds none."""
        forms = {
            number: reading.derived
            for number, reading in enumerate(taps.captures)
            if isinstance(reading.derived, ProjectionForm)
        }
        vectors = [edit.form.vectors for edit in taps.edits]
        vectors += [each for form in forms.values() for each in form.vectors]
        blocks = iter(bank.hold_all(vectors))
        edits, before = [], Counter[SiteKey]()
        for number, edit in enumerate(taps.edits):
            turns: dict[int, list[SiteKey]] = {}
            for site in edit.sites:
                turns.setdefault(before[site], []).append(site)
                before[site] += 1
            in_turn = tuple((turn, tuple(sites)) for turn, sites in turns.items())
            edits.append(RunEdit(number, edit, next(blocks), in_turn))
        projections = {
            number: RunProjection(form, next(blocks), next(blocks))
            for number, form in forms.items()
        }
        return TappedRun(taps, tuple(edits), projections)

    def end(self, bank: VectorBank) -> None:
        """Lets go of the run's vectors."""
        for each in self.edits:
            bank.release(each.block)
        for each in self.projections.values():
            bank.release(each.directions)
            bank.release(each.offsets)

    def same_until(self, position: int) -> int:
        """Below this position everything is read and changed as at the given one, whatever the
        tokens are."""
        spans = [reading.spans for reading in self.taps.captures]
        for each in self.edits:
            spans.append(each.edit.selection.spans)
            if each.differs and len(spans[-1].within(position, position + 1)):
                return position + 1
        return min(each.next_bound(position) for each in spans)
