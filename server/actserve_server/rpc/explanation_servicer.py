"""ExplanationService: translates, nothing else.

`started` is sent when nothing of the request can be refused any more, so that its errors come first
and alone; for a text this is after its rows were captured.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import explanation_service_pb2_grpc, intervention_pb2, site_pb2
from actserve_server.domain.errors import FieldPath
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.readouts.kept import KeptStore
from actserve_server.rpc.explanations import baseline_names, nla_inputs, served_nlas
from actserve_server.rpc.explanations.explained_text import ExplainedText
from actserve_server.rpc.explanations.served_nlas import Nlas, ServedNla
from actserve_server.rpc.requests import interventions, prompt_fields, site_fields
from actserve_server.rpc.responses import model_descriptions, reports
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import Call, current_call


class ExplanationServicer(explanation_service_pb2_grpc.ExplanationServiceServicer):
    def __init__(self, engine: AdmittedEngine, store: KeptStore, autoencoders: Nlas) -> None:
        self._engine = engine
        self._store = store
        self._autoencoders = autoencoders

    def ExplainActivations(  # noqa: N802
        self, request: pb.ExplainActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ExplainActivationsResponse, None]:
        return self._find(request.nla, request.site).explain(request, current_call())

    async def ExplainText(  # noqa: N802
        self, request: pb.ExplainTextRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ExplainTextResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        nla = served_nlas.find(self._autoencoders, request.nla)
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
                self._store.of(call.principal.tenant),
                self._autoencoders,
                info,
                ("interventions",),
            )
            captured = await text.capture(self._engine, edits, call)
            opened = pb.ExplainStarted(prompt=prompt_fields.to_wire(prompt), positions=where)
            told = reports.to_wire(edits, captured.reports)
            async with aclosing(explain(captured.rows)) as answers:
                async for answer in answers:
                    if of_text := _of_text(answer, opened, told, call):
                        yield of_text

    def CompareActivations(  # noqa: N802
        self, request: pb.CompareActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.CompareActivationsResponse, None]:
        return self._find(request.nla, request.site).compare(request, current_call())

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

    def _find(self, name: str, wire: site_pb2.Site, field: FieldPath = ("nla",)) -> ServedNla:
        """The autoencoder that a request names, of the site that its rows come from."""
        site = site_fields.origin(wire, self._engine.info, ("site",))
        return served_nlas.find(self._autoencoders, name, site, field)


def _of_text(
    answer: pb.ExplainActivationsResponse,
    opened: pb.ExplainStarted,
    told: Sequence[intervention_pb2.InterventionReport],
    call: Call,
) -> pb.ExplainTextResponse | None:
    """An answer about the rows of a text as one about the text; None for an event that only a
    newer server knows."""
    match answer.WhichOneof("event"):
        case "started":
            answer.started.MergeFrom(opened)
            return pb.ExplainTextResponse(started=answer.started)
        case "partial":
            return pb.ExplainTextResponse(partial=answer.partial)
        case "explanation":
            return pb.ExplainTextResponse(explanation=answer.explanation)
        case "finished":
            finished = pb.ExplainFinished(usage=usage(call), interventions=told)
            return pb.ExplainTextResponse(finished=finished)
        case _:
            return None
