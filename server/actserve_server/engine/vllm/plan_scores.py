"""Plans what conditions score in a step, and where it is noted what they decide.

A condition without memory scores the selected tokens alone. One with memory scores every token of
its sequence, in order and from position 0 on, whatever the chunks: its run reads no cached prefix,
and begins anew where it is computed again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from actserve_server.domain.probes import Aggregator, Ema
from actserve_server.engine.forms import score_state
from actserve_server.engine.vllm.bank import StepGather
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.step_batch import BatchRows, Model, index_of, to_device
from actserve_server.engine.vllm.tapped_run import RunCondition
from actserve_server.engine.vllm.taps import ScoredRows, ScoreWork

AFTER_ALL_EDITS = 1 << 62
"""In place of a turn."""


def is_lost(item: BatchRows, condition: RunCondition | None) -> bool:
    """Whether it has no score here, because it does not know all the tokens before."""
    remembers = condition is not None and condition.state is not None
    return remembers and item.position not in (0, item.run.at)


class _ScoreKind(NamedTuple):
    """Conditions of which this is equal are scored together."""

    site: SiteKey
    turn: int
    width: int
    aggregator: Aggregator
    """With a weight of one in place of its own: the weights of sequences may differ."""
    tokens: int
    """Of each sequence, where there is memory; else zero."""


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """Rows of one run that one of its conditions scores in this step."""

    condition: RunCondition
    rows: np.ndarray
    decides: np.ndarray
    """Which of the rows are selected; one for each place where it is noted."""
    noted: np.ndarray
    begins: bool
    """Whether they are the first of the sequence."""


class ScorePlan:
    """Collects what a step scores."""

    def __init__(self) -> None:
        self._groups: dict[_ScoreKind, list[_Scored]] = {}
        self.keys: set[int] = set()
        """Of the runs that have a part in it."""

    @property
    def sites(self) -> set[SiteKey]:
        return {kind.site for kind in self._groups}

    def add(
        self,
        item: BatchRows,
        condition: RunCondition,
        selected: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """What a condition decides of some rows of the batch: for each of its edits the rows and
        where they are noted."""
        parts = [*selected, (np.empty(0, np.int64), np.empty(0, np.int64))]
        chosen, noted = (np.concatenate(each) for each in zip(*parts, strict=True))
        rows, remembers = np.unique(chosen), condition.state is not None
        if remembers:
            scored = condition.scored(item.position, item.end)
            rows = np.arange(item.row, item.row + len(scored))
        if not len(rows) or is_lost(item, condition):
            return
        self.keys.add(item.run.taps.key)
        kind = _ScoreKind(
            condition.site,
            AFTER_ALL_EDITS if condition.turn is None else condition.turn,
            condition.direction.width,
            _alike(condition.form.aggregator),
            len(rows) if remembers else 0,
        )
        decides = np.searchsorted(rows, chosen)
        entry = _Scored(condition, rows, decides, noted, begins=item.position == 0)
        self._groups.setdefault(kind, []).append(entry)

    def works(
        self, gather: StepGather, device: torch.device, model: Model, changes: torch.Tensor
    ) -> Iterator[tuple[SiteKey, int, ScoreWork]]:
        """Where each is to be done: the site, and before which turn of edits."""
        for kind, entries in self._groups.items():
            rows = np.concatenate([each.rows for each in entries])
            at = model.rows_at(kind.site, index_of(rows, device))
            scored = _scored_rows(kind, entries, gather, device, changes)
            yield kind.site, kind.turn, ScoreWork(at, scored)


def _alike(aggregator: Aggregator) -> Aggregator:
    if isinstance(aggregator.smoothing, Ema):
        return replace(aggregator, smoothing=Ema(1.0))
    return aggregator


def _scored_rows(
    kind: _ScoreKind,
    entries: list[_Scored],
    gather: StepGather,
    device: torch.device,
    changes: torch.Tensor,
) -> ScoredRows:
    counts = [len(each.rows) for each in entries]
    starts = np.cumsum([0, *counts[:-1]])
    forms = [each.condition.form for each in entries]
    offsets = np.concatenate([each.condition.direction.offsets for each in entries])
    scalars = np.array([[form.bias, form.low, form.high] for form in forms])
    if (offsets == offsets[0]).all() and (scalars == scalars[0]).all():
        offsets, scalars = offsets[:1], scalars[:1]
    else:
        offsets, scalars = (np.repeat(each, counts, axis=0) for each in (offsets, scalars))
    smoothings = [form.aggregator.smoothing for form in forms]
    weights = np.array([[each.weight if isinstance(each, Ema) else 1.0] for each in smoothings])
    noted = np.concatenate([each.noted for each in entries])
    decides = np.concatenate(
        [each.decides + start for each, start in zip(entries, starts, strict=True)]
    )
    states = [each.condition.state for each in entries]
    before = None
    if kind.tokens:
        zero = torch.zeros(score_state(kind.aggregator), dtype=torch.float64, device=device)
        before = torch.stack(
            [
                zero if each.begins or state is None else state
                for each, state in zip(entries, states, strict=True)
            ]
        )
    return ScoredRows(
        aggregator=kind.aggregator,
        directions=gather.vectors(offsets, kind.width),
        scalars=to_device(scalars, device),
        weights=to_device(weights, device),
        states=[state for state in states if state is not None],
        state=before,
        decides=index_of(decides, device) if len(decides) else range(0),
        changes=changes,
        noted=index_of(noted, device) if len(noted) else range(0),
    )
