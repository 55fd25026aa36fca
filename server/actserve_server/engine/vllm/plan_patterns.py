"""Plans what a step makes of attention: keys that are put aside for later queries, and
`PatternRows` of the queries that a run selects.

A run that reads patterns has every key from position zero on, so it reads no cached prefix, unless
its rows are cached too (`row_cache.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.pattern_rows import (
    Queries,
    add_received,
    largest_weights,
    query_measures,
)
from actserve_server.engine.vllm.run_keys import ReceivedSums, RunKeys
from actserve_server.engine.vllm.step_batch import BatchRows, Model, index_of
from actserve_server.engine.vllm.taps import CaptureWork, Part, RowsAt


@dataclass(slots=True, eq=False)
class _LayerQueries:
    """Some queries of a run in one layer, all of whose keys are put aside by the time they are
    used."""

    rule: AttentionRule
    keys: RunKeys
    layer: int
    positions: np.ndarray
    captured: CaptureWork

    def take(self) -> Queries:
        """Once in a pass, at a tap after both."""
        q, self.captured.rows = self.captured.rows, None
        assert q is not None  # Queries are tapped before keys.
        keys = self.keys.of(self.layer, int(self.positions[-1]) + 1, q.dtype)
        return Queries(self.rule, q, keys, self.positions)


@dataclass(slots=True, eq=False)
class RowsWork:
    """Makes rows of queries, each by itself."""

    queries: _LayerQueries
    derived: QueryMeasures | LargestWeights
    rows: torch.Tensor | None = None

    def parts(self, hidden: torch.Tensor) -> Iterable[tuple[slice, RowsAt]]:
        return ()  # Queries and keys were read by then.

    def take(self, part: Part) -> None:
        pass

    def end(self) -> None:
        queries = self.queries.take()
        if isinstance(self.derived, LargestWeights):
            self.rows = largest_weights(self.derived, queries)
        else:
            ids = self.queries.keys.ids(len(queries.keys))
            self.rows = query_measures(self.derived, queries, ids)


@dataclass(slots=True, eq=False)
class ReceivedWork:
    """Adds up what keys receive, and tells it with the last query."""

    queries: _LayerQueries | None
    """None where they have all given before."""
    sums: ReceivedSums
    site: int
    """Which of the capture's."""
    reached: int
    """Where the positions end that are computed in the step."""
    rows: torch.Tensor | None = None

    def parts(self, hidden: torch.Tensor) -> Iterable[tuple[slice, RowsAt]]:
        return ()

    def take(self, part: Part) -> None:
        pass

    def end(self) -> None:
        sums = self.sums.of_site(self.site)
        if self.queries is not None:
            add_received(sums, self.queries.take())
        self.sums.gave(self.site, self.reached)
        self.rows = sums.clone() if self.reached >= len(sums) else None


PatternWork = RowsWork | ReceivedWork
"""Done where keys are tapped. `rows` are float32 [rows, width], where the step gives any."""


@dataclass(frozen=True, slots=True, eq=False)
class PatternBlock:
    """Rows that one capture of a run has in a step."""

    number: int
    """Of the capture."""
    key: int
    """Of the run."""
    positions: np.ndarray
    columns: dict[SiteKey, PatternWork]


class PatternPlan:
    """Collects what a step does."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.works: dict[SiteKey, list[CaptureWork | PatternWork]] = {}
        """At each site, in order."""
        self.blocks: list[PatternBlock] = []
        self.keys: set[int] = set()
        """Of the runs that have a part in it."""

    def add(self, item: BatchRows) -> None:
        """What is to be done with rows of a run."""
        keys = item.run.keys
        if keys is None or item.position >= keys.tokens:
            return
        end = min(item.end, keys.tokens)
        rows = range(item.row, item.row + end - item.position)
        assert item.ids is not None  # The worker shows them.
        keys.put_ids(item.position, item.ids[: len(rows)])
        for layer in keys.layers:
            at = self._model.rows_at(_keys(layer), rows)
            self._add(_keys(layer), CaptureWork(at, partial(keys.put, layer, item.position)))
        self.keys.add(item.run.taps.key)
        for number, reading in enumerate(item.run.taps.captures):
            match reading.derived:
                case QueryMeasures() | LargestWeights() as derived:
                    positions = reading.spans.within(item.position, end)
                    if len(positions):
                        columns = self._rows(item, reading.sites, derived, positions)
                        self._give(item, number, positions, columns)
                case ReceivedWeights() as derived if item.position < derived.end:
                    columns = self._received(item, reading.sites, number, end)
                    if end >= derived.end:
                        self._give(item, number, np.arange(derived.end), columns)
                case _:
                    pass

    def _rows(
        self,
        item: BatchRows,
        sites: Iterable[SiteKey],
        derived: QueryMeasures | LargestWeights,
        positions: np.ndarray,
    ) -> dict[SiteKey, PatternWork]:
        columns: dict[SiteKey, PatternWork] = {}
        for site in sites:
            columns[site] = RowsWork(self._queries(item, site, positions), derived)
            self._add(_keys(site.layer), columns[site])
        return columns

    def _received(
        self, item: BatchRows, sites: Iterable[SiteKey], number: int, end: int
    ) -> dict[SiteKey, PatternWork]:
        columns: dict[SiteKey, PatternWork] = {}
        sums = item.run.received[number]
        for index, site in enumerate(sites):
            positions = sums.queries(index, item.position, end)
            queries = self._queries(item, site, positions) if len(positions) else None
            columns[site] = ReceivedWork(queries, sums, index, end)
            self._add(_keys(site.layer), columns[site])
        return columns

    def _queries(self, item: BatchRows, site: SiteKey, positions: np.ndarray) -> _LayerQueries:
        keys = item.run.keys
        assert keys is not None
        index = index_of(item.row + positions - item.position, keys.device)
        captured = CaptureWork(self._model.rows_at(site, index))
        self._add(site, captured)
        rule = self._model.attention[site.layer]
        return _LayerQueries(rule, keys, site.layer, positions, captured)

    def _give(
        self,
        item: BatchRows,
        number: int,
        positions: np.ndarray,
        columns: dict[SiteKey, PatternWork],
    ) -> None:
        self.blocks.append(PatternBlock(number, item.run.taps.key, positions, columns))

    def _add(self, site: SiteKey, work: CaptureWork | PatternWork) -> None:
        self.works.setdefault(site, []).append(work)


def _keys(layer: int) -> SiteKey:
    return SiteKey.of(Site(HookPoint.K, layer))
