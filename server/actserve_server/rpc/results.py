"""What a call reads of its sequences, as the events of its stream."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from actserve.v1 import generation_service_pb2 as pb
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
from actserve_server.rpc.captures import CaptureRequest

Event = dict[str, Any]
"""The field of a response's `event` and what goes there."""


class Results:
    """Of one call: its sequences run by plans, with a label each or none."""

    def __init__(
        self,
        engine: Engine,
        store: KeptStore,
        wanted: CaptureRequest,
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
        self._means = [LabelMeans() for _ in wanted.sites]
        self._readings: dict[int, Reading] = {}
        self._texts: dict[int, str] = {}
        self._kept: dict[int, str] = {}

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
            async for result in results:
                match result:
                    case ReadRows():
                        for chunk in self._rows(index, result):
                            yield {"activations": chunk}
                    case ReadPredictions():
                        await self._decode(result.predictions.top_ids.ravel().tolist())
                        for chunk in chunks.predictions(result, index, self._texts):
                            yield {"predictions": chunk}
                    case ReadAttention():
                        for chunk in chunks.attention(result, index):
                            yield {"attention": chunk}
                    case RowsToKeep():
                        self._keep(index, result)
        if isinstance(event, Finished):
            # It holds rows.
            del self._readings[index]

    def kept(self, index: int) -> str:
        """The name of what was kept of a sequence that has finished; empty if nothing was."""
        return self._kept.get(index, "")

    def label_means(self) -> Iterator[pb.LabelMean]:
        """The means of all that was read, sorted by label."""
        means = [
            (mean, site_index)
            for site_index, site_means in enumerate(self._means)
            for mean in site_means.result()
        ]
        target = self._wanted.element_type
        for mean, site_index in sorted(means, key=lambda item: (item[0].label, item[1])):
            message = chunks.tensor(convert(mean.mean, ElementType.F32, target), target)
            self._count(1, len(message.data))
            yield pb.LabelMean(
                label=mean.label, site_index=site_index, prompts=mean.count, mean=message
            )

    def _rows(self, index: int, read: ReadRows) -> Iterator[Any]:
        if self._labels:
            (row,) = read.bits
            self._means[read.site_index].add(self._labels[index], row)
            return
        for chunk in chunks.activations(read, index, self._wanted.element_type):
            yield chunk
            self._count(len(chunk.positions), len(chunk.rows.data))

    def _count(self, rows: int, sent_bytes: int) -> None:
        self._call.activation_bytes += sent_bytes
        metrics.CAPTURED_ROWS.inc(rows)
        metrics.CAPTURED_BYTES.inc(sent_bytes)

    def _keep(self, index: int, result: RowsToKeep) -> None:
        kept = self._store.put(
            result.rows, result.positions, result.element_type, self._wanted.ttl_s
        )
        self._kept[index] = kept.name

    async def _decode(self, ids: Iterable[int]) -> None:
        if missing := tuple(set(ids).difference(self._texts)):
            decoded = await self._engine.tokenize(TokenPrompt(missing))
            self._texts.update(zip(missing, decoded.texts, strict=True))
