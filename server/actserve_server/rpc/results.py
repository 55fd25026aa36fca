"""What a call reads of its sequences, as the events of its stream."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.prompts import TokenPrompt
from actserve_server.domain.runs import Finished, Rows, RunEvent, Tokens
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.engine.api import Engine
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.plan import KeepReadout, Plan
from actserve_server.readouts.readers import Reading
from actserve_server.readouts.reductions import LabelMeans
from actserve_server.readouts.results import ReadAttention, ReadPredictions, ReadRows, RowsToKeep
from actserve_server.rpc import chunks, metrics
from actserve_server.rpc.calls import Call
from actserve_server.rpc.readouts import Readouts

Event = dict[str, Any]
"""The field of a response's `event` and what goes there."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """One sequence while it is read."""

    reading: Reading
    label: str
    names: dict[int, str]
    """Of what is to be kept, by readout."""
    kept: dict[int, str] = field(default_factory=dict)
    """Those of what was kept so far."""
    labelled: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """Readout, site index and reduced row: to be counted once the sequence is complete."""


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
        self._means: dict[tuple[int, int], LabelMeans] = {}
        """By readout and site index."""
        self._texts: dict[int, str] = {}
        # One sequence at a time: what is computed from rows is large, and waits for the reader.
        self._turn = asyncio.Lock()

    def open(self, index: int, plan: Plan, label: str = "") -> list[readout_pb2.KeptReadout]:
        """Begins to read sequence `index`. With a label its reduced rows are counted to that and
        not sent. Returns the names that what is kept of it will have."""
        names = {
            readout: self._name(index, readout)
            for readout, each in enumerate(plan.placed)
            if isinstance(each.readout, KeepReadout)
        }
        self._open[index] = _Sequence(Reading(plan, self._engine.info), label, names)
        return _told(index, names)

    def _name(self, index: int, readout: int) -> str:
        if self._request is None:
            return self._store.new_name()
        return self._store.new_name(self._request + f" {index} {readout}".encode())

    async def stream(
        self, events: AsyncGenerator[tuple[int, RunEvent], None]
    ) -> AsyncGenerator[tuple[int, Event | Tokens | Finished], None]:
        """The events of all sequences, with what was read in place of rows, and last for each its
        `Finished`. Closes `events` at the end."""
        async with aclosing(events):
            async for index, event in events:
                if not isinstance(event, Tokens):
                    async with aclosing(self.read(index, event)) as parts:
                        async for part in parts:
                            yield index, part
                if not isinstance(event, Rows):
                    yield index, event

    async def read(self, index: int, event: Rows | Finished) -> AsyncGenerator[Event, None]:
        """What the event adds to sequence `index`."""
        async with self._turn, aclosing(self._open[index].reading.read(event)) as results:
            async for readout, result in results:
                match result:
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
                    case RowsToKeep():
                        self._keep(index, readout, result)

    def close(self, index: int) -> list[readout_pb2.KeptReadout]:
        """Ends sequence `index`, which is complete. Returns what was kept of it."""
        sequence = self._open.pop(index)
        for readout, site_index, row in sequence.labelled:
            means = self._means.setdefault((readout, site_index), LabelMeans())
            means.add(sequence.label, row)
        return _told(index, sequence.kept)

    def drop(self, index: int) -> None:
        """Ends sequence `index`, if it is open, without counting or keeping anything of it."""
        sequence = self._open.pop(index, None)
        for name in sequence.kept.values() if sequence else ():
            self._store.discard(name)

    def label_means(self) -> Iterator[pb.LabelMean]:
        """The means of all that was read, sorted by label."""
        means = [
            (mean, readout, site_index)
            for (readout, site_index), of_site in self._means.items()
            for mean in of_site.result()
        ]
        for mean, readout, site_index in sorted(means, key=lambda m: (m[0].label, *m[1:])):
            target = self._wanted[readout].element_type
            message = chunks.tensor(convert(mean.mean, ElementType.F32, target), target)
            self._count(1, len(message.data))
            yield pb.LabelMean(
                label=mean.label,
                readout_index=readout,
                site_index=site_index,
                items=mean.count,
                mean=message,
            )

    def _rows(self, index: int, readout: int, read: ReadRows) -> Iterator[Any]:
        sequence = self._open[index]
        if sequence.label:
            (row,) = read.bits
            sequence.labelled.append((readout, read.site_index, row))
            return
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
        try:
            kept = self._store.put(
                result.rows,
                result.positions,
                result.element_type,
                result.ttl_s,
                sequence.names[readout],
            )
        except ActserveError as error:
            error.field = self._wanted[readout].field
            raise
        sequence.kept[readout] = kept.name

    async def _decode(self, ids: Iterable[int]) -> None:
        if missing := tuple(set(ids).difference(self._texts)):
            decoded = await self._engine.tokenize(TokenPrompt(missing))
            self._texts.update(zip(missing, decoded.texts, strict=True))


def _told(index: int, names: dict[int, str]) -> list[readout_pb2.KeptReadout]:
    return [
        readout_pb2.KeptReadout(sequence_index=index, readout_index=readout, name=name)
        for readout, name in names.items()
    ]
