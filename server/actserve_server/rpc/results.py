"""What a call reads of its sequences, as the events of its stream."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.prompts import TokenPrompt
from actserve_server.domain.runs import Finished, Rows, RunEvent, Tokens
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.engine.api import Engine
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.plan import Plan
from actserve_server.readouts.readers import Reading
from actserve_server.readouts.reductions import LabelMeans
from actserve_server.readouts.results import ReadAttention, ReadPredictions, ReadRows, RowsToKeep
from actserve_server.rpc import chunks, metrics
from actserve_server.rpc.calls import Call
from actserve_server.rpc.readouts import Readouts

Event = dict[str, Any]
"""The field of a response's `event` and what goes there."""


class Results:
    """Of one call: its sequences run by plans, with a label each or none."""

    def __init__(
        self,
        engine: Engine,
        store: KeptStore,
        wanted: Readouts,
        plans: Sequence[Plan],
        call: Call,
        labels: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._store = store
        self._wanted = wanted
        self._plans = plans
        self._call = call
        self._labels = labels
        self._means: dict[tuple[int, int], LabelMeans] = {}
        """By readout and site index."""
        self._readings: dict[int, Reading] = {}
        self._texts: dict[int, str] = {}
        self._kept: dict[int, list[readout_pb2.KeptReadout]] = {}

    async def stream(
        self, events: AsyncGenerator[tuple[int, RunEvent], None]
    ) -> AsyncGenerator[tuple[int, Event | Tokens | Finished], None]:
        """The events of all runs, with what was read in place of rows, and last for each run its
        `Finished`. Closes `events` at the end."""
        async with aclosing(events):
            async for index, event in events:
                if not isinstance(event, Tokens):
                    async with aclosing(self._read(index, event)) as parts:
                        async for part in parts:
                            yield index, part
                if not isinstance(event, Rows):
                    yield index, event

    async def _read(self, index: int, event: Rows | Finished) -> AsyncGenerator[Event, None]:
        """What the event of sequence `index` adds."""
        if index not in self._readings:
            self._readings[index] = Reading(self._plans[index], self._engine.info)
        async with aclosing(self._readings[index].read(event)) as results:
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
        if isinstance(event, Finished):
            # It holds rows.
            del self._readings[index]

    def kept(self, index: int) -> list[readout_pb2.KeptReadout]:
        """What was kept of a sequence that has finished."""
        return self._kept.get(index, [])

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
                prompts=mean.count,
                mean=message,
            )

    def _rows(self, index: int, readout: int, read: ReadRows) -> Iterator[Any]:
        if self._labels:
            (row,) = read.bits
            means = self._means.setdefault((readout, read.site_index), LabelMeans())
            means.add(self._labels[index], row)
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
        try:
            kept = self._store.put(result.rows, result.positions, result.element_type, result.ttl_s)
        except ActserveError as error:
            error.field = self._wanted[readout].field
            raise
        self._kept.setdefault(index, []).append(
            readout_pb2.KeptReadout(readout_index=readout, name=kept.name)
        )

    async def _decode(self, ids: Iterable[int]) -> None:
        if missing := tuple(set(ids).difference(self._texts)):
            decoded = await self._engine.tokenize(TokenPrompt(missing))
            self._texts.update(zip(missing, decoded.texts, strict=True))
