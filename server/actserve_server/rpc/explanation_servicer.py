"""ExplanationService: translates, nothing else.

`started` is sent when nothing of the request can be refused any more, so that its errors come first
and alone; for a text this is after its rows were captured.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import explanation_service_pb2_grpc, site_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.nla.pair_work import PairWork
from actserve_server.rpc.explanations import baseline_names, nla_inputs, nla_pairs, served_nlas
from actserve_server.rpc.explanations.explained_text import ExplainedText
from actserve_server.rpc.explanations.served_nlas import Nlas, ServedNla
from actserve_server.rpc.requests import interventions, pages, prompt_fields, site_fields
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import model_descriptions, reports
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import current_call


class ExplanationServicer(explanation_service_pb2_grpc.ExplanationServiceServicer):
    def __init__(
        self, engine: AdmittedEngine, sources: Sources, autoencoders: Nlas, pairs: PairWork
    ) -> None:
        self._engine = engine
        self._pairs = pairs
        self._sources = sources
        self._autoencoders = autoencoders

    async def ListNlas(  # noqa: N802
        self, request: pb.ListNlasRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListNlasResponse:
        model_descriptions.check_model(request.parent, self._engine.info, ("parent",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        tenant = current_call().principal.tenant
        described = [nla.describe(tenant) for nla in served_nlas.all_of(self._autoencoders)]
        left = [nla for nla in await asyncio.gather(*described) if nla.name > after]
        more = left[size - 1].name if len(left) > size else ""
        return pb.ListNlasResponse(nlas=left[:size], next_page_token=pages.token(more))

    async def GetNla(  # noqa: N802
        self, request: pb.GetNlaRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetNlaResponse:
        if not request.name:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "name is not set; send one that ListNlas tells",
                field=("name",),
            )
        nla = served_nlas.find(self._autoencoders, request.name, self._engine.info, field=("name",))
        return pb.GetNlaResponse(nla=await nla.describe(current_call().principal.tenant))

    async def ExplainActivations(  # noqa: N802
        self, request: pb.ExplainActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ExplainActivationsResponse, None]:
        answers = self._find(request.nla, request.site).explain(request, current_call())
        async with aclosing(answers) as events:
            async for event in events:
                yield pb.ExplainActivationsResponse(event=event)

    async def ExplainText(  # noqa: N802
        self, request: pb.ExplainTextRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ExplainTextResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        nla = served_nlas.find(self._autoencoders, request.nla, info)
        site = info.check_site(nla.site, ("nla",))
        prompt = await prompt_fields.tokenize_to_run(self._engine, request.prompt, ("prompt",))
        text = ExplainedText.of(request, prompt, site, info)
        where = text.positions
        nla_inputs.check_count(len(where), "positions", nla.max_rows, ("positions",))
        async with nla.asked(request.spec, where, call) as explain:
            if request.interventions:
                call.principal.require(Role.EXPERIMENTER, "changing activations")
            edits = await interventions.interventions(
                request.interventions,
                self._sources.of(call.principal.tenant),
                self._autoencoders,
                info,
                ("interventions",),
            )
            captured = await text.capture(self._engine, edits, call)
            opened = pb.ExplainStarted(prompt=prompt_fields.to_wire(prompt), positions=where)
            told = reports.to_wire(edits, captured.reports)
            async with aclosing(explain(captured.rows)) as events:
                async for event in events:
                    if event.HasField("started"):
                        event.started.MergeFrom(opened)
                    elif event.HasField("finished"):
                        # The run of the prompt counts too.
                        event.finished.CopyFrom(
                            pb.ExplainFinished(usage=usage(call), interventions=told)
                        )
                    yield pb.ExplainTextResponse(event=event)

    async def CompareActivations(  # noqa: N802
        self, request: pb.CompareActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.CompareActivationsResponse, None]:
        answers = self._find(request.nla, request.site).compare(request, current_call())
        async with aclosing(answers) as events:
            async for event in events:
                yield pb.CompareActivationsResponse(event=event)

    def ReconstructActivations(  # noqa: N802
        self, request: pb.ReconstructActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]:
        return self._find(request.nla, request.site).reconstruct(request, current_call())

    async def ScoreExplanations(  # noqa: N802
        self, request: pb.ScoreExplanationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ScoreExplanationsResponse:
        return await self._find(request.nla, request.site).score(request, current_call())

    async def SetExplanationBaseline(  # noqa: N802
        self, request: pb.SetExplanationBaselineRequest, context: grpc.aio.ServicerContext
    ) -> pb.SetExplanationBaselineResponse:
        principal = current_call().principal
        principal.require(Role.EXPERIMENTER, "setting a baseline")
        if request.shared:
            principal.require(Role.OPERATOR, "setting a baseline for all tenants")
        name, _ = baseline_names.parse_name(request.name, ("name",))
        nla = self._find(name, request.site, ("name",))
        return await nla.set_baseline(request, current_call())

    async def DeleteExplanationBaseline(  # noqa: N802
        self, request: pb.DeleteExplanationBaselineRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteExplanationBaselineResponse:
        principal = current_call().principal
        principal.require(Role.EXPERIMENTER, "deleting a baseline")
        if request.shared:
            principal.require(Role.OPERATOR, "deleting a baseline of all tenants")
        name, _ = baseline_names.parse_name(request.name, ("name",))
        nla = served_nlas.find(self._autoencoders, name, self._engine.info, field=("name",))
        return await nla.delete_baseline(request, current_call())

    async def ListNlaPairs(  # noqa: N802
        self, request: pb.ListNlaPairsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListNlaPairsResponse:
        call, info = current_call(), self._engine.info
        call.principal.require(Role.OPERATOR, "listing pairs")
        model_descriptions.check_model(request.parent, info, ("parent",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        told = [nla_pairs.to_wire(pair, info, call) for pair in await self._pairs.all()]
        left = [pair for pair in told if pair.name > after]
        more = left[size - 1].name if len(left) > size else ""
        return pb.ListNlaPairsResponse(nla_pairs=left[:size], next_page_token=pages.token(more))

    async def GetNlaPair(  # noqa: N802
        self, request: pb.GetNlaPairRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetNlaPairResponse:
        call, info = current_call(), self._engine.info
        call.principal.require(Role.OPERATOR, "looking at a pair")
        pair = await self._pairs.get(nla_pairs.parse_name(request.name, info), request.name)
        return pb.GetNlaPairResponse(nla_pair=nla_pairs.to_wire(pair, info, call))

    async def LoadNlaPair(  # noqa: N802
        self, request: pb.LoadNlaPairRequest, context: grpc.aio.ServicerContext
    ) -> pb.LoadNlaPairResponse:
        call, info = current_call(), self._engine.info
        call.principal.require(Role.OPERATOR, "loading a pair")
        pair = await self._pairs.load(nla_pairs.parse_name(request.name, info), request.name)
        return pb.LoadNlaPairResponse(nla_pair=nla_pairs.to_wire(pair, info, call))

    async def UnloadNlaPair(  # noqa: N802
        self, request: pb.UnloadNlaPairRequest, context: grpc.aio.ServicerContext
    ) -> pb.UnloadNlaPairResponse:
        call, info = current_call(), self._engine.info
        call.principal.require(Role.OPERATOR, "unloading a pair")
        pair = await self._pairs.unload(nla_pairs.parse_name(request.name, info), request.name)
        return pb.UnloadNlaPairResponse(nla_pair=nla_pairs.to_wire(pair, info, call))

    def _find(self, name: str, wire: site_pb2.Site, field: FieldPath = ("nla",)) -> ServedNla:
        """The autoencoder that a request names, of the site that its rows come from."""
        info = self._engine.info
        site = site_fields.origin(wire, info, ("site",))
        return served_nlas.find(self._autoencoders, name, info, site, field)
