"""AttributionGraphService: translates, nothing else."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from actserve.v1 import attribution_graph_service_pb2 as pb
from actserve.v1 import attribution_graph_service_pb2_grpc, work_pb2
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.graphs import stored_graphs
from actserve_server.graphs.graph_work import GraphWork
from actserve_server.graphs.stored_graphs import (
    ID,
    GraphRegistry,
    NewGraph,
    StoredGraph,
)
from actserve_server.graphs.traced_graph import TraceRequest
from actserve_server.rpc.requests import graph_fields, pages, prompt_fields
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.responses import chunks, graph_messages, model_descriptions
from actserve_server.rpc.responses.graph_messages import GraphMessages
from actserve_server.rpc.transport.calls import current_call

POLL_S = 0.25
"""How late a watcher may hear of progress."""


class AttributionGraphServicer(attribution_graph_service_pb2_grpc.AttributionGraphServiceServicer):
    def __init__(
        self,
        engine: AdmittedEngine,
        dictionaries: DictionaryRegistry,
        registry: GraphRegistry,
        work: GraphWork,
    ) -> None:
        self._engine = engine
        self._dictionaries = dictionaries
        self._registry = registry
        self._work = work

    async def CreateAttributionGraph(  # noqa: N802
        self, request: pb.CreateAttributionGraphRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateAttributionGraphResponse:
        call, info = current_call(), self._engine.info
        call.principal.require(Role.EXPERIMENTER, "storing attribution graphs")
        model_descriptions.check_model(request.model, info, ("model",))
        graph_fields.check_served(info)
        chosen = graph_fields.new_id(request.attribution_graph_id)
        settings = graph_fields.settings(request.settings, of_features=bool(request.dictionaries))
        making = await making_request(request)
        tenant = call.principal.tenant
        stored = await self._registry.made(tenant, making)
        if stored is None:
            self._work.check_room(tenant)
            transcoders = await graph_fields.transcoders(request, self._dictionaries, tenant, info)
            prompt = await graph_fields.prompt(self._engine, request)
            new = NewGraph(
                id=chosen,
                prompt=prompt_fields.to_wire(prompt).SerializeToString(),
                settings=graph_fields.settings_to_wire(settings).SerializeToString(),
                dictionaries=transcoders,
            )
            wanted = TraceRequest(token_ids=prompt.ids, settings=settings)
            messages = GraphMessages(prompt.ids, call, of_features=bool(transcoders))

            async def begin() -> StoredGraph:
                with self._work.place(tenant):
                    begun, is_new = await self._registry.begin(tenant, new, making)
                    if is_new:
                        self._work.begin(begun, wanted, messages)
                return begun

            # Not cut short with the call: a graph that is stored is made.
            stored = await asyncio.shield(begin())
        return pb.CreateAttributionGraphResponse(attribution_graph=self._to_wire(stored))

    async def GetAttributionGraph(  # noqa: N802
        self, request: pb.GetAttributionGraphRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetAttributionGraphResponse:
        stored = await self._stored(request.name)
        return pb.GetAttributionGraphResponse(attribution_graph=self._to_wire(stored))

    async def ListAttributionGraphs(  # noqa: N802
        self, request: pb.ListAttributionGraphsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListAttributionGraphsResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        if after and not ID.fullmatch(after):
            raise pages.not_ours()
        found = await self._registry.list(self._tenant(), after, size + 1)
        if any(map(self._seems_lost, found)):
            found = await self._registry.list(self._tenant(), after, size + 1)
        page = list(chunks.fitting(map(self._to_wire, found[:size])))
        more = found[len(page) - 1].id if len(found) > len(page) else ""
        return pb.ListAttributionGraphsResponse(
            attribution_graphs=page, next_page_token=pages.token(more)
        )

    async def DeleteAttributionGraph(  # noqa: N802
        self, request: pb.DeleteAttributionGraphRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteAttributionGraphResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deleting attribution graphs")
        stored = await self._registry.delete(self._tenant(), self._id(request.name))
        self._work.forget(stored)
        return pb.DeleteAttributionGraphResponse()

    async def WatchAttributionGraph(  # noqa: N802
        self, request: pb.WatchAttributionGraphRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.WatchAttributionGraphResponse, None]:
        stored = await self._stored(request.name)
        told: work_pb2.Work | None = None
        while True:
            now = graph_messages.work(stored, self._work.progress(stored), current_call())
            if now != told:
                told = now
                yield pb.WatchAttributionGraphResponse(progress=now)
            if graph_messages.is_over(now):
                break
            await asyncio.sleep(POLL_S)
            stored = await self._stored(request.name)
        if now.state == work_pb2.WORK_STATE_SUCCEEDED:
            number = 0
            while (part := await self._registry.part(stored.key, number)) is not None:
                yield pb.WatchAttributionGraphResponse.FromString(part)
                number += 1
            # One that was deleted meanwhile is not told to its end, and says so.
            if (await self._stored(request.name)).key != stored.key:
                raise stored_graphs.not_found(request.name, ("name",))
        yield pb.WatchAttributionGraphResponse(finished=pb.AttributionGraphFinished())

    async def _stored(self, name: str) -> StoredGraph:
        stored = await self._registry.get(self._tenant(), self._id(name))
        if self._seems_lost(stored):
            stored = await self._registry.get(self._tenant(), self._id(name))
        return stored

    def _seems_lost(self, stored: StoredGraph) -> bool:
        """Whether nobody makes it any more; or this server has, since it was read: then reading it
        again tells."""
        return stored.is_lost and self._work.progress(stored) is None

    def _tenant(self) -> str:
        return current_call().principal.tenant

    def _id(self, name: str) -> str:
        return graph_fields.graph(name, self._engine.info)

    def _to_wire(self, stored: StoredGraph) -> pb.AttributionGraph:
        here = self._work.progress(stored)
        return graph_messages.to_wire(stored, here, self._engine.info, current_call())
