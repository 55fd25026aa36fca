"""GenerationService: translates, nothing else.

Everything is checked and every prompt tokenized before `started` is sent, so that an error of the
request comes first and alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from actserve.v1 import capture_pb2, generation_service_pb2_grpc, intervention_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Finished, Run, Tokens
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.plan import Plan, captures
from actserve_server.rpc import interventions, models, prompts, reports, sources
from actserve_server.rpc.calls import current_call
from actserve_server.rpc.captures import NOTHING, CaptureRequest, capture
from actserve_server.rpc.endings import FINISH_REASONS, usage
from actserve_server.rpc.interventions import InterventionRequest
from actserve_server.rpc.positions import Place
from actserve_server.rpc.results import Results
from actserve_server.rpc.sampling import sampling
from actserve_server.rpc.served_nlas import Nlas
from actserve_server.rpc.sources import Found
from actserve_server.rpc.tensors import WIRE_ELEMENT_TYPES


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, engine: AdmittedEngine, store: KeptStore, autoencoders: Nlas) -> None:
        self._engine = engine
        self._store = store
        self._autoencoders = autoencoders

    async def FetchActivations(  # noqa: N802
        self, request: pb.FetchActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        call, info = current_call(), self._engine.info
        models.check_model(request.model, info, ("model",))
        _check_prompt_count(len(request.prompts), info.limits.max_prompts)
        wanted = await self._capture(request.capture)
        _check_labels(request.labels, len(request.prompts), wanted)
        edits = await self._interventions(request.interventions)
        tokenized: list[TokenizedPrompt] = []
        plans: list[Plan] = []
        runs: list[Run] = []
        for index, wire in enumerate(request.prompts):
            field = ("prompts", index)
            prompt = await prompts.tokenize_to_run(self._engine, wire, field)
            place = Place(prompt=prompt, run_tokens=len(prompt.ids), item=field)
            tokenized.append(prompt)
            plans.append(wanted.at(place))
            runs.append(
                Run(
                    id=f"{call.id}-{index}",
                    token_ids=prompt.ids,
                    captures=captures(plans[index]),
                    interventions=interventions.placed(edits, place),
                    tenant=call.principal.tenant,
                )
            )
        events = self._engine.run_all(runs)
        call.prompt_tokens += sum(len(run.token_ids) for run in runs)
        results = Results(self._engine, self._own(), wanted, plans, call, request.labels)

        yield pb.FetchActivationsResponse(started=pb.FetchStarted(**_started(wanted, info)))
        opened: set[int] = set()
        async with aclosing(results.stream(events)) as stream:
            with reports.numbered_as_sent(edits):
                async for index, event in stream:
                    if index not in opened:
                        opened.add(index)
                        yield pb.FetchActivationsResponse(
                            prompt_started=pb.PromptStarted(
                                prompt_index=index,
                                prompt=prompts.to_wire(tokenized[index]),
                                positions=_selected(wanted, plans[index], tokenized[index]),
                            )
                        )
                    match event:
                        case dict():
                            yield pb.FetchActivationsResponse(**event)
                        case Finished():
                            reports.count(edits)
                            yield pb.FetchActivationsResponse(
                                prompt_finished=pb.PromptFinished(
                                    prompt_index=index,
                                    interventions=reports.to_wire(edits, event.interventions),
                                    kept=results.kept(index),
                                )
                            )
        for mean in results.label_means():
            yield pb.FetchActivationsResponse(label_mean=mean)
        yield pb.FetchActivationsResponse(finished=pb.FetchFinished(usage=usage(call)))

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        call, info = current_call(), self._engine.info
        models.check_model(request.model, info, ("model",))
        wanted = NOTHING
        if request.HasField("capture"):
            wanted = await self._capture(request.capture)
        edits = await self._interventions(request.interventions)
        prompt = await prompts.tokenize_to_run(self._engine, request.prompt, ("prompt",))
        sampled = sampling(request.sampling, info, len(prompt.ids), ("sampling",))
        place = Place(prompt=prompt, run_tokens=len(prompt.ids) + sampled.base.max_tokens - 1)
        plan, applied = wanted.at(place), interventions.placed(edits, place)
        runs = [
            Run(
                id=f"{call.id}-{sample}",
                token_ids=prompt.ids,
                sampling=sampled.of(sample),
                captures=captures(plan),
                interventions=applied,
                tenant=call.principal.tenant,
            )
            for sample in range(sampled.samples)
        ]
        events = self._engine.run_all(runs)
        call.prompt_tokens += len(prompt.ids)
        results = Results(self._engine, self._own(), wanted, [plan] * len(runs), call)

        yield pb.GenerateResponse(
            started=pb.GenerateStarted(prompt=prompts.to_wire(prompt), **_started(wanted, info))
        )
        async with aclosing(results.stream(events)) as stream:
            with reports.numbered_as_sent(edits):
                async for index, event in stream:
                    match event:
                        case dict():
                            yield pb.GenerateResponse(**event)
                        case Tokens():
                            call.output_tokens += len(event.ids)
                            yield pb.GenerateResponse(tokens=_tokens(event, index))
                        case Finished():
                            reports.count(edits)
                            yield pb.GenerateResponse(
                                sample_finished=pb.SampleFinished(
                                    sample_index=index,
                                    reason=FINISH_REASONS[event.reason],
                                    captured_positions=_captured(wanted, event),
                                    interventions=reports.to_wire(edits, event.interventions),
                                    kept=results.kept(index),
                                )
                            )
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage(call)))

    async def _capture(self, wire: capture_pb2.CaptureSpec) -> CaptureRequest:
        kept = sources.look_up(dict(sources.named(wire, ("capture",))), self._own())
        found = Found(info=self._engine.info, kept=kept)
        # In a thread: a projection may be tens of megabytes.
        wanted = await asyncio.to_thread(capture, wire, found, ("capture",))
        if wire.HasField("keep"):
            current_call().principal.require(Role.EXPERIMENTER, "keeping activations")
        self._store.check_ttl(wanted.ttl_s)
        return wanted

    async def _interventions(
        self, wire: Sequence[intervention_pb2.Intervention]
    ) -> Sequence[InterventionRequest]:
        if wire:
            current_call().principal.require(Role.EXPERIMENTER, "changing activations")
        return await interventions.interventions(
            wire, self._own(), self._autoencoders, self._engine.info, ("interventions",)
        )

    def _own(self) -> KeptStore:
        """What the caller's tenant keeps."""
        return self._store.of(current_call().principal.tenant)


def _check_prompt_count(count: int, limit: int) -> None:
    if count == 0:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the request has no prompts; send one", field=("prompts",)
        )
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_PROMPTS,
            f"{count} prompts were sent, but a call may have at most {limit}; make several calls",
            field=("prompts",),
            metadata={"prompts": count, "limit": limit},
        )


def _check_labels(labels: Sequence[str], prompt_count: int, wanted: CaptureRequest) -> None:
    if not labels:
        return
    if len(labels) != prompt_count:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {len(labels)} labels for {prompt_count} prompts; send one for each, or "
            "none",
            field=("labels",),
            metadata={"labels": len(labels), "prompts": prompt_count},
        )
    for index, label in enumerate(labels):
        if not label:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"label {index} is empty; name it",
                field=("labels", index),
            )
    wanted.check_averaged()


def _started(wanted: CaptureRequest, info: ModelInfo) -> dict[str, Any]:
    """What opens a stream; without rows there is nothing to say of them."""
    rows = wanted.rows
    return {
        "request_id": current_call().id,
        "element_type": WIRE_ELEMENT_TYPES[wanted.element_type] if rows else None,
        "widths": rows.widths(info) if rows else (),
    }


def _selected(wanted: CaptureRequest, plan: Plan, prompt: TokenizedPrompt) -> list[int]:
    return plan[0].selection.among(prompt.ids).tolist() if wanted.rows else []


def _captured(wanted: CaptureRequest, event: Finished) -> list[int]:
    return event.captured_positions[0].tolist() if wanted.rows else []


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
