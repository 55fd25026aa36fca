"""HeadService: translates, nothing else.

Items are those of a fetch (`requests/items.py`), so they are checked, admitted and run in turn as
those are; what is measured of them is added up while they run.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import grpc

from actserve.v1 import head_service_pb2 as pb
from actserve.v1 import head_service_pb2_grpc
from actserve_server.domain.prompts import TokenPrompt
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.readouts.head_sums import HeadMeans, HeadSums
from actserve_server.readouts.statistics import Memory
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.generations import require_changes
from actserve_server.rpc.requests.head_fields import as_fetch, heads_request
from actserve_server.rpc.requests.items import Items, check_items
from actserve_server.rpc.requests.measured_items import MeasuredItems
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import head_messages, model_descriptions
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import current_call

TOKEN_BYTES = 1 << 30
"""What the sums by token of all calls take at most."""


class HeadServicer(head_service_pb2_grpc.HeadServiceServicer):
    def __init__(self, engine: AdmittedEngine, sources: Sources, autoencoders: Nlas) -> None:
        self._engine = engine
        self._sources = sources
        self._autoencoders = autoencoders
        self._memory = Memory(TOKEN_BYTES, "sums by token")

    async def MeasureHeads(  # noqa: N802
        self, request: pb.MeasureHeadsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.MeasureHeadsResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        fetch = as_fetch(request)
        check_items(fetch, info.limits.max_items)
        if any(item.interventions for item in request.items):
            require_changes()
        wanted = heads_request(request, info)
        own = self._sources.of(call.principal.tenant)
        items = Items(fetch, self._engine, own, self._autoencoders, wanted.readouts, (), call, None)
        await items.check()
        heads = info.attention[wanted.layers[0]].heads
        sums = HeadSums(wanted.layers, heads, wanted.top_tokens)
        admitted = self._engine.enter(call.principal.tenant, checked=info)

        yield pb.MeasureHeadsResponse(started=pb.MeasureHeadsStarted(call_id=call.id))
        with sums.within(self._memory):
            measured = MeasuredItems(request, items, wanted, sums, call)
            parts = [partial(measured.serve, i, admitted) for i in range(len(request.items))]
            async with aclosing(admitted.merge(parts)) as events:
                async for _, event in events:
                    yield event
            for layer in wanted.layers:
                means = await off_loop(sums.means, layer)
                for each in head_messages.metrics(layer, means, await self._texts(means)):
                    yield pb.MeasureHeadsResponse(metrics=each)
        yield pb.MeasureHeadsResponse(finished=pb.MeasureHeadsFinished(usage=usage(call)))

    async def _texts(self, means: HeadMeans) -> dict[int, str]:
        """The texts of the top tokens of a layer."""
        both = (means.query_tokens.token_ids, means.key_tokens.token_ids)
        ids = tuple(sorted({token for each in both for token in each.ravel().tolist()}))
        if not ids:
            return {}
        decoded = await self._engine.tokenize(TokenPrompt(ids))
        return dict(zip(ids, decoded.texts, strict=True))
