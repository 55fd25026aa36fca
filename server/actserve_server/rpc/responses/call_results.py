"""What a call reads of its sequences, as the events of its stream."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.prompts import TokenPrompt
from actserve_server.domain.runs import Finished, Rows, Tokens
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.watching import Flagged, WatchedEvent
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.plan import KeepReadout, Plan, RowReadout, SecondMoments
from actserve_server.readouts.readers import QUICK_OPERATIONS, Reading
from actserve_server.readouts.results import (
    ReadAttention,
    ReadAttentionSummary,
    ReadLogitAttribution,
    ReadPredictions,
    ReadRows,
    RowsToKeep,
)
from actserve_server.readouts.statistics import Key, RowLabels, Statistics
from actserve_server.rpc.requests.readout_fields import Readouts
from actserve_server.rpc.responses import chunks
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.calls import Call
from actserve_server.stages import Stage

Event = dict[str, Any]
"""The field of a response's `event` and what goes there."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """One sequence while it is read."""

    reading: Reading
    plan: Plan
    labels: RowLabels
    names: dict[int, str]
    """Of what is to be kept, by readout."""
    kept: dict[int, str] = field(default_factory=dict)
    """Those of what was kept so far."""
    made: list[str] = field(default_factory=list)
    """Those of them that were not there before, from an equal call."""
    adapter: str = ""
    """With which it runs."""
    statistics: Statistics = field(default_factory=Statistics)
    """To be counted once the sequence is complete."""
    has_turn: bool = False


class Results:
    """Of one call. Each of its sequences is opened, then read event by event, then closed."""

    def __init__(
        self,
        engine: Engine,
        store: KeptStore,
        wanted: Readouts,
        call: Call,
        request: bytes | None = None,
    ) -> None:
        """What is kept has new names; with a digest of the request, the same as the last time."""
        self._engine = engine
        self._store = store
        self._wanted = wanted
        self._call = call
        self._request = request
        self._open: dict[int, _Sequence] = {}
        self._statistics = Statistics()
        self._texts: dict[int, str] = {}
        self._counting = any(self._counts(each) for each in range(len(wanted.requests)))
        # One event at a time: what is computed from rows is large, and waits for the reader. With
        # statistics one sequence at a time, from its first event on, so that there are sums of one
        # only beside those of the call; the rows of others wait within what these have reserved.
        self._turn = asyncio.Lock()

    def open(
        self, index: int, plan: Plan, labels: RowLabels | None = None, *, adapter: str = ""
    ) -> list[readout_pb2.KeptReadout]:
        """Begins to read sequence `index`, whose rows have these labels where they are counted, and
        are told to be of this adapter where they are kept. Returns the names that what is kept of
        it will have."""
        names = {
            each.number: self._name(index, each.number)
            for each in plan.placed
            if isinstance(each.readout, KeepReadout)
        }
        self._open[index] = _Sequence(
            Reading(plan, self._engine.info), plan, labels or RowLabels(), names, adapter=adapter
        )
        return _told(index, names)

    def _name(self, index: int, readout: int) -> str:
        if self._request is None:
            return self._store.new_name()
        return self._store.new_name(self._request + f" {index} {readout}".encode())

    async def stream(
        self, events: AsyncGenerator[tuple[int, WatchedEvent], None]
    ) -> AsyncGenerator[tuple[int, Event | Tokens | Finished | Flagged], None]:
        """The events of all sequences, with what was read in place of rows, and last for each its
        `Finished`. Closes `events` at the end."""
        async with aclosing(events):
            async for index, event in events:
                if isinstance(event, Tokens):
                    self._open[index].reading.generated(event.ids)
                elif not isinstance(event, Flagged):
                    async with aclosing(self.read(index, event)) as parts:
                        async for part in parts:
                            yield index, part
                if not isinstance(event, Rows):
                    yield index, event

    async def read(self, index: int, event: Rows | Finished) -> AsyncGenerator[Event, None]:
        """What the event adds to sequence `index`."""
        sequence = self._open[index]
        placed = sequence.plan.placed
        reading = self._call.spread(Stage.CAPTURE).timed(sequence.reading.read(event))
        async with self._having_turn(sequence), aclosing(reading) as results:
            async for among_placed, result in results:
                readout = placed[among_placed].number
                match result:
                    case ReadRows() if kind := self._counts(readout):
                        await self._add(sequence, readout, result, kind)
                    case ReadRows():
                        for chunk in self._rows(index, readout, result):
                            yield {"activations": chunk}
                    case ReadPredictions():
                        await self._decode(result.predictions.top_ids.ravel().tolist())
                        for chunk in chunks.predictions(result, index, readout, self._texts):
                            yield {"predictions": chunk}
                    case ReadAttention():
                        for chunk in chunks.attention(result, index, readout):
                            yield {"attention": chunk}
                    case ReadAttentionSummary():
                        summary = chunks.attention_summary(result, index, readout)
                        yield {"attention_summary": summary}
                    case ReadLogitAttribution():
                        for chunk in chunks.logit_attribution(result, index, readout):
                            yield {"logit_attribution": chunk}
                    case RowsToKeep():
                        self._keep(index, readout, result)

    async def close(self, index: int) -> list[readout_pb2.KeptReadout]:
        """Ends sequence `index`, which is complete. Returns what was kept of it."""
        sequence = self._open.pop(index)
        try:
            if sequence.statistics.numbers < QUICK_OPERATIONS:
                self._statistics.merge(sequence.statistics)
            else:
                await off_loop(self._statistics.merge, sequence.statistics)
        finally:
            self._give_turn(sequence)
        return _told(index, sequence.kept)

    def drop(self, index: int) -> None:
        """Ends sequence `index`, if it is open, without counting or keeping anything of it."""
        if sequence := self._open.pop(index, None):
            self._give_turn(sequence)
            for name in sequence.made:
                self._store.discard(name)

    @asynccontextmanager
    async def _having_turn(self, sequence: _Sequence) -> AsyncGenerator[None, None]:
        if not sequence.has_turn:
            await self._turn.acquire()
            sequence.has_turn = True
        try:
            yield
        finally:
            if not self._counting:
                self._give_turn(sequence)

    def _give_turn(self, sequence: _Sequence) -> None:
        if sequence.has_turn:
            sequence.has_turn = False
            self._turn.release()

    def statistics(self) -> Iterator[pb.LabelStatistics]:
        """The statistics of all rows that were counted, sorted by label, readout and site."""
        every = self._statistics.moments.items()
        for (readout, site_index, label), moments in sorted(
            every, key=lambda item: (item[0][2], *item[0])
        ):
            for message in chunks.statistics(moments):
                message.label, message.readout_index, message.site_index = (
                    label,
                    readout,
                    site_index,
                )
                self._count(
                    message.HasField("mean"),
                    len(message.mean.data) + len(message.second_moments.data),
                )
                yield message

    def _counts(self, readout: int) -> SecondMoments | None:
        """What is told of the rows of a readout in place of them."""
        wanted = self._wanted[readout].readout
        return wanted.statistics if isinstance(wanted, RowReadout) else None

    async def _add(
        self, sequence: _Sequence, readout: int, read: ReadRows, kind: SecondMoments
    ) -> None:
        for label, mask in sequence.labels.of(read.positions):
            key, rows = (readout, read.site_index, label), read.bits[mask]
            full = kind is SecondMoments.FULL
            add = partial(_add, sequence.statistics, key, rows, read.element_type, full=full)
            operations = rows.size * (rows.shape[1] if full else 1)
            if operations < QUICK_OPERATIONS:
                add()
            else:
                await off_loop(add)

    def _rows(self, index: int, readout: int, read: ReadRows) -> Iterator[Any]:
        target = self._wanted[readout].element_type
        for chunk in chunks.activations(read, index, readout, target):
            yield chunk
            self._count(len(chunk.positions), len(chunk.rows.data))

    def _count(self, rows: int, sent_bytes: int) -> None:
        self._call.activation_bytes += sent_bytes
        metrics.CAPTURED_ROWS.inc(rows)
        metrics.CAPTURED_BYTES.inc(sent_bytes)

    def _keep(self, index: int, readout: int, result: RowsToKeep) -> None:
        sequence = self._open[index]
        name = sequence.names[readout]
        there = self._store.holds(name)
        try:
            kept = self._store.put(
                result.rows,
                result.positions,
                result.element_type,
                result.ttl_s,
                name,
                adapter=sequence.adapter,
            )
        except ActserveError as error:
            error.field = self._wanted[readout].field
            raise
        sequence.kept[readout] = kept.name
        if not there:
            sequence.made.append(kept.name)

    async def _decode(self, ids: Iterable[int]) -> None:
        if missing := tuple(set(ids).difference(self._texts)):
            decoded = await self._engine.tokenize(TokenPrompt(missing))
            self._texts.update(zip(missing, decoded.texts, strict=True))


def _add(
    statistics: Statistics, key: Key, bits: np.ndarray, element_type: ElementType, *, full: bool
) -> None:
    statistics.add(key, to_float32(bits, element_type), full=full)


def _told(index: int, names: dict[int, str]) -> list[readout_pb2.KeptReadout]:
    return [
        readout_pb2.KeptReadout(sequence_index=index, readout_index=readout, name=name)
        for readout, name in names.items()
    ]
