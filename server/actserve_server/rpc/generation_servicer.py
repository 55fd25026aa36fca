"""GenerationService: translates, nothing else.

What belongs to a whole call is checked before `started` is sent, so that an error of the request
comes first and alone.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

import grpc

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import generation_service_pb2_grpc, readout_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Tokens
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.readouts.statistics import Memory
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.generations import Generations, require_changes
from actserve_server.rpc.requests import prompt_fields
from actserve_server.rpc.requests.items import Items, check_items, label_count
from actserve_server.rpc.requests.request_ids import request_digest
from actserve_server.rpc.requests.sampling_fields import sampling
from actserve_server.rpc.responses import model_descriptions
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import current_call

STATISTICS_BYTES = 1 << 30
"""What the statistics of all calls take at most."""


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(
        self,
        engine: AdmittedEngine,
        autoencoders: Nlas,
        generations: Generations,
    ) -> None:
        self._engine = engine
        self._autoencoders = autoencoders
        self._generations = generations
        self._statistics = Memory(STATISTICS_BYTES)

    async def FetchActivations(  # noqa: N802
        self, request: pb.FetchActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        check_items(request, info.limits.max_items)
        _check_any(request.readouts)
        if any(item.interventions for item in request.items):
            require_changes()
        wanted = await self._generations.readouts(request.readouts)
        statistics_bytes = wanted.check_statistics(label_count(request), info)
        edits = await self._generations.interventions(request.interventions)
        digest = await request_digest(request, ("request_id",))
        own, nlas = self._generations.own(), self._autoencoders
        items = Items(request, self._engine, own, nlas, wanted, edits, call, digest)
        await items.check()
        admitted = self._engine.enter(call.principal.tenant, checked=info)

        # Those of the call, and those of the item that is being read.
        with self._statistics.held(2 * statistics_bytes):
            yield pb.FetchActivationsResponse(
                started=pb.FetchStarted(call_id=call.id, readouts=wanted.started(info))
            )
            parts = [partial(items.serve, index, admitted) for index in range(len(request.items))]
            async with aclosing(admitted.merge(parts)) as events:
                async for _, event in events:
                    yield event
            for each in items.results.statistics():
                yield pb.FetchActivationsResponse(statistics=each)
        yield pb.FetchActivationsResponse(finished=pb.FetchFinished(usage=usage(call)))

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        wanted = await self._generations.read(request)
        prompt = await prompt_fields.tokenize_to_run(self._engine, request.prompt, ("prompt",))
        sampled = await sampling(request.sampling, self._engine, len(prompt.ids), ("sampling",))
        generation = await self._generations.begin(wanted, prompt, sampled)

        yield pb.GenerateResponse(
            started=pb.GenerateStarted(
                call_id=call.id,
                prompt=prompt_fields.to_wire(prompt),
                readouts=wanted.readouts.started(info),
                kept=generation.kept,
            )
        )
        async with aclosing(generation.events) as events:
            async for index, event in events:
                if isinstance(event, Tokens):
                    yield pb.GenerateResponse(tokens=_tokens(event, index))
                else:
                    yield pb.GenerateResponse(**event)
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage(call)))


def _check_any(wire: Sequence[readout_pb2.Readout]) -> None:
    if not wire:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the request has no readouts, so nothing would be read; send one",
            field=("readouts",),
        )


def _tokens(event: Tokens, index: int) -> pb.TokenChunk:
    return pb.TokenChunk(
        sample_index=index,
        position=event.position,
        ids=event.ids,
        texts=event.texts,
        text=event.text,
        logprobs=[
            pb.TokenLogprobs(
                logprob=item.logprob,
                top=[
                    pb.TokenLogprob(id=top.id, text=top.text, logprob=top.logprob)
                    for top in item.top
                ],
            )
            for item in event.logprobs
        ],
    )
