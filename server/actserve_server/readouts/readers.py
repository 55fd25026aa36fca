"""Turns the rows of one sequence into results, as they come and when the run has finished.

A reader answers with a tuple of what it has at hand, or with an iterator where it has to compute
for long: `Reading` advances that in a thread, so that the event loop goes on with everybody else's
work.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actserve_server.domain.attention_patterns import pattern_blocks, top_k
from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.blocks import blocks
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.ranking import largest
from actserve_server.domain.runs import Finished, Rows
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.fair_threads import off_loop
from actserve_server.readouts.attention_summary import summarize, summary_of
from actserve_server.readouts.head_sums import LayerSums, layer_sums, sums_of
from actserve_server.readouts.logit_attribution import Attributions
from actserve_server.readouts.plan import (
    AttentionReadout,
    AttentionSummaryReadout,
    HeadReadout,
    KeepReadout,
    LogitAttributionReadout,
    Plan,
    PredictionReadout,
    Readout,
    RowReadout,
)
from actserve_server.readouts.results import (
    ReadAttention,
    ReadAttentionSummary,
    ReadHeads,
    ReadPredictions,
    ReadRows,
    Result,
    RowsToKeep,
)

QUICK_OPERATIONS = 1 << 18
"""Multiplications that take less time than the way to a thread and back, some 50 us. The row of a
generated token is so quick to project onto a few directions."""

Results = tuple[Result, ...] | Iterator[Result]


class Reading:
    """Reads one sequence: takes the tokens that are generated and every `Rows` of its run in order,
    then its `Finished`."""

    def __init__(self, plan: Plan, info: ModelInfo) -> None:
        self._plan = plan
        self._token_ids = list(plan.prompt_ids)
        self._readers = [_reader(placed.readout, info, self._token_ids) for placed in plan.placed]

    def generated(self, ids: Iterable[int]) -> None:
        """The sequence goes on with these tokens."""
        self._token_ids.extend(ids)

    async def read(self, event: Rows | Finished) -> AsyncGenerator[tuple[int, Result], None]:
        """What the event adds, each with the index of its readout."""
        if isinstance(event, Rows):
            all_results = [
                (use.readout, self._readers[use.readout].add(use.part, use.site_index, event))
                for use in self._plan.uses[event.capture_index, event.site_index]
            ]
        else:
            all_results = [
                (readout, reader.finish(*(event.captured_positions[part] for part in parts)))
                for readout, (reader, parts) in enumerate(
                    zip(self._readers, self._plan.parts, strict=True)
                )
            ]
        for readout, results in all_results:
            if isinstance(results, tuple):
                for result in results:
                    yield readout, result
            else:
                while (result := await off_loop(next, results, None)) is not None:
                    yield readout, result


class _Reader(Protocol):
    """Of one readout of one sequence. `part` says of which of the readout's captures rows are and
    `site_index` of which of its sites; `finish` is told the positions of each capture. Rows may be
    shared with other readers, so none changes them."""

    def add(self, part: int, site_index: int, rows: Rows) -> Results: ...

    def finish(self, *positions: np.ndarray) -> Results: ...


def _reader(readout: Readout, info: ModelInfo, token_ids: Sequence[int]) -> _Reader:
    match readout:
        case RowReadout():
            return _RowReader(readout, info.element_type)
        case KeepReadout():
            return _KeepReader(readout, info.element_type)
        case PredictionReadout():
            return _PredictionReader(readout)
        case AttentionReadout(largest=LargestWeights() as largest):
            return _LargestWeightsReader(largest)
        case AttentionReadout():
            return _AttentionReader(readout, info.attention[readout.layer], info.element_type)
        case AttentionSummaryReadout(measures=QueryMeasures() as measures):
            return _MeasuredSummaryReader(readout, measures, token_ids)
        case AttentionSummaryReadout():
            return _AttentionSummaryReader(readout, info, token_ids)
        case HeadReadout(measures=QueryMeasures() as measures):
            return _MeasuredHeadReader(readout, measures, token_ids)
        case HeadReadout():
            return _HeadReader(readout, info, token_ids)
        case LogitAttributionReadout():
            return _LogitAttributionReader(readout, info.element_type)


class _RowReader:
    def __init__(self, readout: RowReadout, element_type: ElementType) -> None:
        self._readout = readout
        self._element_type = element_type
        self._reducers = [readout.reduction.start() for _ in readout.sites if readout.reduction]

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        if (derived := self._readout.derived) is not None:
            values, indices = derived.split(rows.bits)
            if not self._reducers:
                return (_computed(site_index, rows.positions, values, indices),)
            reduced = self._reduce(site_index, values)
            return tuple(reduced) if values.size < QUICK_OPERATIONS else reduced
        if self._readout.computed:
            projection, results = self._readout.projection, self._compute(site_index, rows)
            each = 1 if projection is None else len(projection.directions)
            return tuple(results) if rows.bits.size * each < QUICK_OPERATIONS else results
        return (
            ReadRows(
                site_index=site_index,
                positions=rows.positions,
                bits=rows.bits,
                element_type=self._element_type,
            ),
        )

    def finish(self, *positions: np.ndarray) -> Results:
        (selected,) = positions
        return self._finish(selected) if len(selected) else ()

    def _compute(self, site: int, rows: Rows) -> Iterator[Result]:
        projection = self._readout.projection
        width = rows.bits.shape[1] if projection is None else len(projection.directions)
        for block in blocks(len(rows.bits), width):
            values = to_float32(rows.bits[block], self._element_type)
            if self._reducers:
                values = values if projection is None else projection.apply(values)
                self._reducers[site].add(values)
            elif projection is not None:
                yield self._projected(site, rows.positions[block], values)

    def _reduce(self, site: int, values: np.ndarray) -> Iterator[Result]:
        self._reducers[site].add(values)
        yield from ()

    def _projected(self, site: int, positions: np.ndarray, values: np.ndarray) -> ReadRows:
        projection, top = self._readout.projection, self._readout.send_top
        assert projection is not None
        if top is None:
            return _computed(site, positions, projection.apply(values))
        sparse = projection.top(values, top)
        return _computed(site, positions, sparse.values, sparse.indices)

    def _finish(self, positions: np.ndarray) -> Iterator[Result]:
        for site, reducer in enumerate(self._reducers):
            row = reducer.result()
            assert row is not None  # There were positions.
            values, indices = row[None], None
            if self._readout.send_top is not None:
                indices, values = largest(values, self._readout.send_top)
            yield _computed(site, positions[-1:], values, indices)


class _KeepReader:
    def __init__(self, readout: KeepReadout, element_type: ElementType) -> None:
        self._readout = readout
        self._element_type = element_type
        self._rows: list[list[np.ndarray]] = [[] for _ in readout.sites]

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        self._rows[site_index].append(rows.bits)
        return ()

    def finish(self, *positions: np.ndarray) -> Results:
        (selected,) = positions
        return self._finish(selected) if len(selected) else ()

    def _finish(self, positions: np.ndarray) -> Iterator[Result]:
        yield RowsToKeep(
            rows={
                site: np.concatenate(parts)
                for site, parts in zip(self._readout.sites, self._rows, strict=True)
            },
            positions=positions,
            element_type=self._element_type,
            ttl_s=self._readout.ttl_s,
        )


class _PredictionReader:
    def __init__(self, readout: PredictionReadout) -> None:
        self._unembed = readout.unembed

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        return (
            ReadPredictions(
                site_index=site_index,
                positions=rows.positions,
                predictions=self._unembed.split(rows.bits),
            ),
        )

    def finish(self, *positions: np.ndarray) -> Results:
        return ()


class _AttentionReader:
    """Holds queries and keys until all are there: the last query may need the first key."""

    def __init__(
        self, readout: AttentionReadout, rule: AttentionRule, element_type: ElementType
    ) -> None:
        self._readout = readout
        self._rule = rule
        self._element_type = element_type
        self._rows: tuple[list[np.ndarray], ...] = ([], [])

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        self._rows[part].append(rows.bits)
        return ()

    def finish(self, *positions: np.ndarray) -> Results:
        queries, _ = positions
        return self._patterns(queries) if len(queries) else ()

    def _patterns(self, positions: np.ndarray) -> Iterator[Result]:
        q, k = (to_float32(np.concatenate(parts), self._element_type) for parts in self._rows)
        # Where generated tokens were selected by id, keys came beyond the last query.
        k = k[: positions[-1] + 1]
        for head in self._readout.heads:
            for block, weights in pattern_blocks(self._rule, q, k, head, positions):
                yield self._pattern(head, positions[block], weights)

    def _pattern(self, head: int, queries: np.ndarray, weights: np.ndarray) -> ReadAttention:
        keys, wanted = None, self._readout.top_k
        if wanted is not None:
            sparse = top_k(weights, wanted).padded(wanted)
            keys, weights = sparse.keys, sparse.weights
        return ReadAttention(
            head=head,
            queries=queries,
            weights=weights,
            keys=keys,
        )


class _LargestWeightsReader:
    """Holds what the engine has found until all is there, to give one head after the other."""

    def __init__(self, largest: LargestWeights) -> None:
        self._largest = largest
        self._rows: list[np.ndarray] = []

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        self._rows.append(rows.bits)
        return ()

    def finish(self, *positions: np.ndarray) -> Results:
        (queries,) = positions
        return self._patterns(queries) if len(queries) else ()

    def _patterns(self, queries: np.ndarray) -> Iterator[Result]:
        found = self._largest.split(np.concatenate(self._rows))
        for head, sparse in zip(self._largest.heads, found, strict=True):
            yield ReadAttention(
                head=head, queries=queries, weights=sparse.weights, keys=sparse.keys
            )


class _MeasuredSummaryReader:
    """Adds up what the engine has measured of each query. `token_ids` are those of the sequence,
    and grow while it runs."""

    def __init__(
        self,
        readout: AttentionSummaryReadout,
        measures: QueryMeasures,
        token_ids: Sequence[int],
    ) -> None:
        self._readout = readout
        self._measures = measures
        self._token_ids = token_ids
        shape = (len(readout.layers), measures.heads, measures.numbers)
        self._sums = np.zeros(shape)
        self._received: list[list[np.ndarray]] = [[] for _ in readout.layers]

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        if part:
            self._received[site_index].append(rows.bits)
            return ()
        added = self._add(site_index, rows.bits)
        return tuple(added) if rows.bits.size < QUICK_OPERATIONS else added

    def _add(self, site_index: int, rows: np.ndarray) -> Iterator[Result]:
        sums = rows.sum(axis=0, dtype=np.float64)
        self._sums[site_index] += sums.reshape(self._sums.shape[1:])
        yield from ()

    def finish(self, *positions: np.ndarray) -> Results:
        return self._summaries(positions[0])

    def _summaries(self, queries: np.ndarray) -> Iterator[Result]:
        tokens = queries[-1] + 1 if len(queries) else 0
        token_ids = np.array(self._token_ids[:tokens], np.int64)
        nothing = np.empty((0, self._measures.heads), np.float32)
        for index, layer in enumerate(self._readout.layers):
            received = np.concatenate([nothing, *self._received[index]]).T.astype(np.float64)
            yield ReadAttentionSummary(
                layer=layer,
                summary=summary_of(
                    self._measures,
                    self._sums[index],
                    received,
                    queries,
                    token_ids,
                    self._readout.top_keys,
                ),
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """All that attention of a layer comes of."""

    layer: int
    rule: AttentionRule
    q: np.ndarray
    k: np.ndarray
    """Up to the last query."""
    positions: np.ndarray
    """Of the queries."""
    token_ids: np.ndarray
    """Of the keys, int64."""


class _LayerReader:
    """Holds queries and keys until all are there, and lets go of those of a layer with its result.

    `token_ids` are those of the sequence, and grow while it runs.
    """

    def __init__(self, layers: Sequence[int], info: ModelInfo, token_ids: Sequence[int]) -> None:
        self._layers = layers
        self._info = info
        self._token_ids = token_ids
        self._rows = tuple([[] for _ in layers] for _ in ("queries", "keys"))

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        self._rows[part][site_index].append(rows.bits)
        return ()

    def finish(self, *positions: np.ndarray) -> Results:
        queries, _ = positions
        return map(self.result, self._whole(queries))

    def result(self, of: _Layer) -> Result:
        """Of one layer."""
        raise NotImplementedError

    def _whole(self, positions: np.ndarray) -> Iterator[_Layer]:
        for index, layer in enumerate(self._layers):
            rule = self._info.attention[layer]
            widths = (rule.heads * rule.head_dim, rule.key_value_heads * rule.head_dim)
            q, k = (self._take(part, index, width) for part, width in enumerate(widths))
            # Where generated tokens were selected by id, keys came beyond the last query.
            tokens = positions[-1] + 1 if len(positions) else 0
            ids = np.array(self._token_ids[:tokens], np.int64)
            yield _Layer(layer, rule, q, k[:tokens], positions, ids)

    def _take(self, part: int, index: int, width: int) -> np.ndarray:
        parts, self._rows[part][index] = self._rows[part][index], []
        if not parts:
            return np.empty((0, width), np.float32)
        return to_float32(np.concatenate(parts), self._info.element_type)


class _AttentionSummaryReader(_LayerReader):
    """Makes a summary of each layer."""

    def __init__(
        self, readout: AttentionSummaryReadout, info: ModelInfo, token_ids: Sequence[int]
    ) -> None:
        super().__init__(readout.layers, info, token_ids)
        self._readout = readout

    def result(self, of: _Layer) -> Result:
        summary = summarize(
            of.rule,
            of.q,
            of.k,
            of.positions,
            of.token_ids,
            offsets=self._readout.offsets,
            top_keys=self._readout.top_keys,
        )
        return ReadAttentionSummary(layer=of.layer, summary=summary)


class _HeadReader(_LayerReader):
    """Makes sums of each layer."""

    def __init__(self, readout: HeadReadout, info: ModelInfo, token_ids: Sequence[int]) -> None:
        super().__init__(readout.layers, info, token_ids)
        self._readout = readout

    def result(self, of: _Layer) -> Result:
        by_token = self._readout.by_token
        sums = layer_sums(of.rule, of.q, of.k, of.positions, of.token_ids, by_token=by_token)
        return ReadHeads(layer=of.layer, sums=sums)


class _MeasuredHeadReader:
    """Adds up what the engine has measured of each query, and holds until the end what is told by
    token."""

    def __init__(
        self, readout: HeadReadout, measures: QueryMeasures, token_ids: Sequence[int]
    ) -> None:
        self._readout = readout
        self._measures = measures
        self._token_ids = token_ids
        self._sums = np.zeros((len(readout.layers), measures.heads, measures.numbers))
        self._given: list[list[np.ndarray]] = [[] for _ in readout.layers]
        self._received: list[list[np.ndarray]] = [[] for _ in readout.layers]

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        if part:
            self._received[site_index].append(rows.bits)
            return ()
        added = self._add(site_index, rows.bits)
        return tuple(added) if rows.bits.size < QUICK_OPERATIONS else added

    def _add(self, site_index: int, rows: np.ndarray) -> Iterator[Result]:
        measured = rows.reshape(len(rows), *self._sums.shape[1:])
        self._sums[site_index] += measured.sum(axis=0, dtype=np.float64)
        if self._readout.by_token:
            self._given[site_index].append(self._measures.beyond_first(measured).copy())
        yield from ()

    def finish(self, *positions: np.ndarray) -> Results:
        return self._layers(positions[0])

    def _layers(self, queries: np.ndarray) -> Iterator[Result]:
        tokens = queries[-1] + 1 if len(queries) else 0
        token_ids = np.array(self._token_ids[:tokens], np.int64)
        for index, layer in enumerate(self._readout.layers):
            sums: LayerSums = sums_of(self._sums[index], queries, token_ids)
            if self._readout.by_token and tokens:
                given = np.concatenate(self._given[index]).T
                received = np.concatenate(self._received[index]).T
                sums = sums.told_by_token(given, received, queries)
            self._given[index], self._received[index] = [], []
            yield ReadHeads(layer=layer, sums=sums)


class _LogitAttributionReader:
    def __init__(self, readout: LogitAttributionReadout, element_type: ElementType) -> None:
        self._targets = len(readout.directions.stream)
        self._attributions = Attributions(readout, element_type)

    def add(self, part: int, site_index: int, rows: Rows) -> Results:
        if part:
            results = self._attributions.add_last(rows)
        else:
            results = self._attributions.add(site_index, rows)
        return tuple(results) if rows.bits.size * self._targets < QUICK_OPERATIONS else results

    def finish(self, *positions: np.ndarray) -> Results:
        return ()


def _computed(
    site_index: int, positions: np.ndarray, values: np.ndarray, indices: np.ndarray | None = None
) -> ReadRows:
    return ReadRows(
        site_index=site_index,
        positions=positions,
        bits=values,
        element_type=ElementType.F32,
        indices=indices,
    )
