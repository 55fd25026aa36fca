"""What a call wants to be read, and as which captures of a run.

A `Readout` is the same for all sequences of a call. Placed into one, with the positions it selects
there, it needs captures; its reader (`readers.py`) turns their rows into results. What several
readouts need of one site is captured once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import ClassVar

import numpy as np

from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Positions, Selection, Spans
from actserve_server.domain.projection import MAX_DIRECTIONS, Projected, Projection
from actserve_server.domain.runs import Capture, Derived, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import LogitDirections
from actserve_server.engine.pattern_memory import memory_of, pattern_bytes
from actserve_server.readouts.reductions import Reduction


class SecondMoments(Enum):
    """Of rows about their mean."""

    DIAGONAL = auto()
    FULL = auto()


_WEIGHT_BYTES = 4
_KEY_BYTES = 4

LARGEST_IN_ENGINE = 64
"""Of the weights of a head, that the engine picks out: more take as many bytes as queries and keys
do."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowReadout:
    """Rows of some sites, projected, then reduced, then cut to the largest elements."""

    sites: tuple[Site, ...]
    positions: Positions
    projection: Projection | None = None
    send_top: int | None = None
    """How many of the largest elements of a projected row to give; at most as many as directions,
    and all if None."""
    reduction: Reduction | None = None
    statistics: SecondMoments | None = None
    """What to tell of the rows in place of them, beside counts and means; None for the rows."""
    in_engine: bool = False
    """Whether the engine projects, see `projected_where_best`."""

    @property
    def derived(self) -> Projected | None:
        """What the engine gives in place of rows."""
        if self.projection is None or not self.in_engine:
            return None
        # A reduction is of all components, of which the largest are taken at the end.
        return Projected(self.projection, None if self.reduction else self.send_top)

    @property
    def computed(self) -> bool:
        """Whether the rows given are other than the model's own."""
        return self.projection is not None or self.reduction is not None

    def widths(self, info: ModelInfo) -> tuple[int, ...]:
        """Of the rows given, site by site."""
        if self.projection is None:
            return tuple(info.at(site).width for site in self.sites)
        width = len(self.projection.directions) if self.send_top is None else self.send_top
        return (width,) * len(self.sites)

    def heads(self, info: ModelInfo) -> tuple[int, ...]:
        """That make up a row given, site by site; zero where it has none."""
        # Components along directions are not parts of heads, however many there are.
        if self.projection is not None:
            return (0,) * len(self.sites)
        return tuple(info.at(site).heads for site in self.sites)

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection, self.derived),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeepReadout:
    """Rows of some sites, given at the end as `RowsToKeep`."""

    sites: tuple[Site, ...]
    positions: Positions
    ttl_s: float
    """For how long to keep them."""

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PredictionReadout:
    """Next-token predictions at some sites."""

    sites: tuple[Site, ...]
    unembed: Unembed
    positions: Positions

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection, self.unembed),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionReadout:
    """Attention patterns of some heads of a layer; `positions` are those of the queries."""

    layer: int
    heads: tuple[int, ...]
    positions: Positions
    top_k: int | None = None
    """How many of the largest weights of a query to give; all if None."""
    largest: LargestWeights | None = None
    """What the engine gives of each query, if it does; see `patterns_where_best`."""

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        if self.largest is not None:
            return (Capture(_queries((self.layer,)), selection, self.largest),)
        return _queries_and_keys((self.layer,), selection)

    def result_bytes(self, selection: Selection, tokens: int) -> int:
        """The most bytes of patterns in a sequence that runs so many tokens."""
        queries = selection.spans.count(tokens)
        keys = min(selection.spans.ranges[-1][1], tokens)
        row_bytes = (
            keys * _WEIGHT_BYTES
            if self.top_k is None
            else self.top_k * (_WEIGHT_BYTES + _KEY_BYTES)
        )
        return len(self.heads) * queries * row_bytes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionSummaryReadout:
    """How every head of some layers attends; `positions` are those of the queries."""

    layers: tuple[int, ...]
    positions: Positions
    offsets: tuple[int, ...] = ()
    """How far before its query is each position to give the mean attention to."""
    top_keys: int = 0
    """How many of the keys that receive most attention to give."""
    measures: QueryMeasures | None = None
    """What the engine gives of each query, if it does; see `patterns_where_best`."""
    received: ReceivedWeights | None = None
    """What it gives of each key, where `top_keys` are wanted."""

    @property
    def by_key(self) -> bool:
        """Whether what each key receives is wanted."""
        return self.top_keys > 0

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return _measured(self.layers, selection, self.measures, self.received)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadReadout:
    """How every head of some layers attends, in sums to which those of other sequences are added;
    `positions` are those of the queries."""

    layers: tuple[int, ...]
    positions: Positions
    by_token: bool = False
    """Whether to give also what each query gives and each key receives."""
    measures: QueryMeasures | None = None
    """What the engine gives of each query, if it does; see `patterns_where_best`."""
    received: ReceivedWeights | None = None
    """What it gives of each key, where sums are wanted by token."""

    offsets: ClassVar[tuple[int, ...]] = ()

    @property
    def by_key(self) -> bool:
        """Whether what each key receives is wanted."""
        return self.by_token

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return _measured(self.layers, selection, self.measures, self.received)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LogitAttributionReadout:
    """How much rows of some sites add to some logits."""

    sites: tuple[Site, ...]
    """Parts of the residual stream, and `z`, whose heads are told one by one."""
    directions: LogitDirections
    last: Site
    """The residual stream that the final norm reads, whose scale is each position's."""
    positions: Positions

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection), Capture((self.last,), selection))

    def result_bytes(self, selection: Selection, tokens: int) -> int:
        """The most bytes of attributions in a sequence that runs so many tokens."""
        numbers = sum(math.prod(self.seen_from(site).shape[:-1]) for site in self.sites)
        return selection.spans.count(tokens) * numbers * _WEIGHT_BYTES

    def seen_from(self, site: Site) -> np.ndarray:
        """What rows of a site are multiplied with: float32 [targets, width], or of `z` [targets,
        heads, head width]."""
        if site.hook_point is HookPoint.Z:
            assert site.layer is not None
            return self.directions.heads[site.layer]
        return self.directions.stream


Readout = (
    RowReadout
    | PredictionReadout
    | AttentionReadout
    | AttentionSummaryReadout
    | HeadReadout
    | LogitAttributionReadout
    | KeepReadout
)


def projected_where_best(readouts: Iterable[Readout], info: ModelInfo) -> tuple[Readout, ...]:
    """The readouts of a call, of which the engine projects what it had better, beside the model:
    where it then sends no more than the rows themselves in 16 bits, and as long as it has room for
    the directions beside the vectors of interventions."""
    chosen, room = [], info.vector_bytes // 2
    for each in readouts:
        if isinstance(each, RowReadout) and (projection := each.projection) is not None:
            there = replace(each, in_engine=True)
            assert there.derived is not None
            directions, width = projection.directions.shape
            small = 2 * there.derived.width <= width and directions <= MAX_DIRECTIONS
            if small and projection.nbytes <= room:
                room -= projection.nbytes
                each = there
        chosen.append(each)
    return tuple(chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A readout in one sequence."""

    readout: Readout
    selection: Selection
    """Where it reads; of attention, the queries."""
    number: int = 0
    """Which one of the call's readouts it is."""

    @property
    def captures(self) -> tuple[Capture, ...]:
        """What it needs, as if it were alone."""
        return self.readout.captures(self.selection)


def patterns_where_best(
    placed: Iterable[Placed], prompt_tokens: int, run_tokens: int, info: ModelInfo
) -> tuple[Placed, ...]:
    """The readouts of a sequence, of which the engine makes what is known of patterns beside the
    model, as long as it has room for the keys. What is added up over queries it makes of those of
    the prompt alone, whose last one is known."""
    chosen: list[Placed] = []
    held: list[Capture] = []
    for each in placed:
        there = _in_engine(each, prompt_tokens, run_tokens, info) if info.attention else None
        if there is not None and not info.pattern_rows_unserved:
            memory = memory_of([*held, *there.captures], run_tokens)
            if pattern_bytes(memory, info) <= info.vector_bytes // 4:
                held += there.captures
                each = there
        chosen.append(each)
    return tuple(chosen)


def _in_engine(
    placed: Placed, prompt_tokens: int, run_tokens: int, info: ModelInfo
) -> Placed | None:
    """The same with patterns in the engine; None for what needs none, or whole ones."""
    readout = placed.readout
    if isinstance(readout, AttentionReadout) and readout.top_k is not None:
        if readout.top_k > LARGEST_IN_ENGINE:
            return None
        largest = LargestWeights(readout.heads, readout.top_k)
        return replace(placed, readout=replace(readout, largest=largest))
    if not isinstance(readout, AttentionSummaryReadout | HeadReadout):
        return None
    heads, received = info.attention[0].heads, None
    if readout.by_key:
        queries = _of_prompt(placed.selection, prompt_tokens, run_tokens)
        if queries is None:
            return None
        received = ReceivedWeights(heads, queries)
    measures = QueryMeasures(heads, readout.offsets)
    return replace(placed, readout=replace(readout, measures=measures, received=received))


def _of_prompt(selection: Selection, prompt_tokens: int, run_tokens: int) -> Spans | None:
    """The selected positions, if all are of the prompt."""
    ranges = [
        (start, min(end, run_tokens)) for start, end in selection.spans.ranges if start < run_tokens
    ]
    return Spans(tuple(ranges)) if ranges and ranges[-1][1] <= prompt_tokens else None


@dataclass(frozen=True, slots=True)
class Use:
    """Who needs the rows of a captured site: a readout, as which of its own captures and sites."""

    readout: int
    part: int
    site_index: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that is read of one sequence."""

    placed: tuple[Placed, ...]
    captures: tuple[Capture, ...]
    """Of the sequence's run. No site is captured twice at the same positions."""
    uses: Mapping[tuple[int, int], tuple[Use, ...]]
    """By capture and site index."""
    parts: tuple[tuple[int, ...], ...]
    """For each readout the captures in which its own are; the first is where it reads."""
    prompt_ids: tuple[int, ...]
    """The tokens of the sequence's prompt."""


def plan(placed: tuple[Placed, ...], prompt_ids: tuple[int, ...]) -> Plan:
    """Shares what readouts need: one capture for each selection, of all sites wanted there."""
    needed = [each.captures for each in placed]
    numbers: dict[tuple[Selection, Derived], int] = {}
    uses: list[dict[Site, list[Use]]] = []
    for readout, own in enumerate(needed):
        for part, capture in enumerate(own):
            number = numbers.setdefault((capture.selection, capture.derived), len(uses))
            if number == len(uses):
                uses.append({})
            for index, site in enumerate(capture.sites):
                uses[number].setdefault(site, []).append(Use(readout, part, index))
    return Plan(
        placed=placed,
        captures=tuple(
            Capture(tuple(uses[number]), selection, derived)
            for (selection, derived), number in numbers.items()
        ),
        uses={
            (number, index): tuple(users)
            for number, sites in enumerate(uses)
            for index, users in enumerate(sites.values())
        },
        parts=tuple(
            tuple(numbers[capture.selection, capture.derived] for capture in own) for own in needed
        ),
        prompt_ids=prompt_ids,
    )


def _queries(layers: tuple[int, ...]) -> tuple[Site, ...]:
    return tuple(Site(HookPoint.Q, layer) for layer in layers)


def _measured(
    layers: tuple[int, ...],
    selection: Selection,
    measures: QueryMeasures | None,
    received: ReceivedWeights | None,
) -> tuple[Capture, ...]:
    """What the engine gives of queries and keys, or else these themselves."""
    if measures is None:
        return _queries_and_keys(layers, selection)
    queries = _queries(layers)
    measured = Capture(queries, selection, measures)
    if received is None:
        return (measured,)
    every = Selection(Spans(((0, received.end),)))
    return measured, Capture(queries, every, received)


def _queries_and_keys(layers: tuple[int, ...], selection: Selection) -> tuple[Capture, ...]:
    """Queries where selected, and keys everywhere up to the last of these."""
    *_, (_, end) = selection.spans.ranges
    every = Selection(Spans(((0, end),)))
    return (
        Capture(_queries(layers), selection),
        Capture(tuple(Site(HookPoint.K, layer) for layer in layers), every),
    )
