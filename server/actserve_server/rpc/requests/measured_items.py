"""The items of a measurement of heads: each is checked and run by itself as those of a fetch, and
ends with its own status."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from actserve.v1 import head_service_pb2 as pb
from actserve_server.domain.errors import OF_THE_CALL, ActserveError
from actserve_server.domain.runs import Finished, Rows
from actserve_server.engine.admission import AdmittedCall
from actserve_server.engine.fair_threads import off_loop
from actserve_server.readouts.head_sums import HeadSums
from actserve_server.readouts.plan import AttentionReadout
from actserve_server.readouts.readers import QUICK_OPERATIONS, Reading
from actserve_server.readouts.results import ReadAttention, ReadHeads
from actserve_server.rpc.requests import prompt_fields
from actserve_server.rpc.requests.head_fields import HeadsRequest
from actserve_server.rpc.requests.items import Item, Items
from actserve_server.rpc.responses import head_messages, reports
from actserve_server.rpc.transport import metrics, statuses
from actserve_server.rpc.transport.calls import Call
from actserve_server.stages import Stage


class MeasuredItems:
    """Those of one call. What is measured of each is added to `sums` once it was run."""

    def __init__(
        self,
        request: pb.MeasureHeadsRequest,
        items: Items,
        wanted: HeadsRequest,
        sums: HeadSums,
        call: Call,
    ) -> None:
        self._request = request
        self._items = items
        self._wanted = wanted
        self._sums = sums
        self._call = call
        self._adding = asyncio.Lock()
        """Some of it is done in threads."""

    async def serve(
        self, index: int, admitted: AdmittedCall
    ) -> AsyncGenerator[pb.MeasureHeadsResponse, None]:
        """Everything that is sent of one item."""
        closed = pb.MeasuredItem(item_index=index, key=self._request.items[index].key)
        try:
            item = await self._items.prepare(index)
            self._call.prompt_tokens += len(item.run.token_ids)
            async with aclosing(self._read(index, item, admitted)) as chunks:
                async for chunk in chunks:
                    yield pb.MeasureHeadsResponse(pattern=chunk)
            closed.prompt.CopyFrom(prompt_fields.to_wire(item.prompt))
            metrics.HEAD_ITEMS.inc()
        except ActserveError as error:
            # Where there is no room for the tokens of one, nothing can be told by token of any.
            if error.reason in OF_THE_CALL or error.field == ("top_tokens",):
                raise
            closed.status.CopyFrom(statuses.item_status(error, self._call))
        yield pb.MeasureHeadsResponse(item_finished=closed)

    async def _read(
        self, index: int, item: Item, admitted: AdmittedCall
    ) -> AsyncGenerator[pb.SparsePatternChunk, None]:
        """Its patterns, as far as they are wanted."""
        reading = Reading(item.plan, self._wanted.readouts.info)
        with reports.numbered_as_sent(item.edits):
            async with admitted.started(item.run) as events:
                async for event in events:
                    if not isinstance(event, Rows | Finished):
                        continue
                    read = self._call.spread(Stage.CAPTURE).timed(reading.read(event))
                    async with aclosing(read) as results:
                        async for placed, result in results:
                            readout = item.plan.placed[placed].readout
                            match result, readout:
                                case ReadHeads(), _:
                                    # With `Finished`, so an item that fails counts nowhere.
                                    await self._add(result)
                                case ReadAttention(), AttentionReadout(layer=layer):
                                    for chunk in head_messages.patterns(
                                        result, index, layer, self._wanted.minimum
                                    ):
                                        yield chunk
                                case _:
                                    raise AssertionError(result)
                    if isinstance(event, Finished):
                        reports.count(item.edits)

    async def _add(self, result: ReadHeads) -> None:
        sums = result.sums
        numbers = 0 if sums.given is None else sums.given.size
        async with self._adding:
            if numbers < QUICK_OPERATIONS:
                self._sums.add(result.layer, sums)
            else:
                await off_loop(self._sums.add, result.layer, sums)
