"""GenerationService: translates, nothing else.

Everything is checked and every prompt tokenized before `started` is sent, so that an error of the
request comes first and alone.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import grpc

from actserve.v1 import capture_pb2, generation_service_pb2_grpc
from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Finished, FinishReason, Rows, Run, Tokens
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.rpc import metrics, models, prompts, sites
from actserve_server.rpc.calls import Call, current_call
from actserve_server.rpc.chunks import chunks
from actserve_server.rpc.sampling import sampling
from actserve_server.rpc.tensors import WIRE_ELEMENT_TYPES

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(self, engine: AdmittedEngine) -> None:
        self._engine = engine

    async def FetchActivations(  # noqa: N802
        self, request: pb.FetchActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        call, info = current_call(), self._engine.info
        models.check_model(request.model, info, "model")
        _check_prompt_count(len(request.prompts), info.limits.max_prompts)
        capture = sites.capture(request.capture, info, "capture")
        edits = sites.interventions(request.interventions, info, "interventions")
        tokenized = []
        runs: list[Run] = []
        for index, wire in enumerate(request.prompts):
            field = f"prompts[{index}]"
            prompt = await prompts.tokenize_to_run(self._engine, wire, field)
            place = sites.Place(
                prompt_tokens=len(prompt.ids), run_tokens=len(prompt.ids), name=field
            )
            tokenized.append(prompt)
            runs.append(
                Run(
                    id=f"{call.id}-{index}",
                    token_ids=prompt.ids,
                    capture=capture.at(place),
                    interventions=tuple(edit.at(place) for edit in edits),
                )
            )
        events = self._engine.run_all(runs)
        call.prompt_tokens = sum(len(run.token_ids) for run in runs)

        yield pb.FetchActivationsResponse(
            started=pb.FetchStarted(
                request_id=call.id,
                element_type=WIRE_ELEMENT_TYPES[capture.element_type],
                widths=[info.width] * len(capture.sites),
            )
        )
        opened: set[int] = set()
        async with aclosing(events):
            async for index, event in events:
                if index not in opened:
                    opened.add(index)
                    yield pb.FetchActivationsResponse(
                        prompt_started=pb.PromptStarted(
                            prompt_index=index,
                            prompt=prompts.to_wire(tokenized[index]),
                            positions=_positions(runs[index]),
                        )
                    )
                match event:
                    case Rows():
                        for chunk in self._chunks(event, index, capture.element_type, call):
                            yield pb.FetchActivationsResponse(activations=chunk)
                    case Finished():
                        _count_interventions(runs[index])
                        yield pb.FetchActivationsResponse(
                            prompt_finished=pb.PromptFinished(prompt_index=index)
                        )
        yield pb.FetchActivationsResponse(finished=pb.FetchFinished(usage=_usage(call)))

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        call, info = current_call(), self._engine.info
        models.check_model(request.model, info, "model")
        capture = None
        if request.HasField("capture"):
            capture = sites.capture(request.capture, info, "capture")
        edits = sites.interventions(request.interventions, info, "interventions")
        prompt = await prompts.tokenize_to_run(self._engine, request.prompt, "prompt")
        sampled = sampling(request.sampling, info, len(prompt.ids), "sampling")
        place = sites.Place(
            prompt_tokens=len(prompt.ids),
            run_tokens=len(prompt.ids) + sampled.base.max_tokens - 1,
        )
        captured = None if capture is None else capture.at(place)
        applied = tuple(edit.at(place) for edit in edits)
        runs = [
            Run(
                id=f"{call.id}-{sample}",
                token_ids=prompt.ids,
                sampling=sampled.of(sample),
                capture=captured,
                interventions=applied,
            )
            for sample in range(sampled.samples)
        ]
        events = self._engine.run_all(runs)
        call.prompt_tokens = len(prompt.ids)
        element_type = info.element_type if capture is None else capture.element_type

        yield pb.GenerateResponse(
            started=pb.GenerateStarted(
                request_id=call.id,
                prompt=prompts.to_wire(prompt),
                element_type=WIRE_ELEMENT_TYPES[element_type] if capture else None,
                widths=[info.width] * len(capture.sites) if capture else [],
            )
        )
        async with aclosing(events):
            async for index, event in events:
                match event:
                    case Tokens():
                        call.output_tokens += len(event.ids)
                        yield pb.GenerateResponse(tokens=_tokens(event, index))
                    case Rows():
                        for chunk in self._chunks(event, index, element_type, call):
                            yield pb.GenerateResponse(activations=chunk)
                    case Finished():
                        _count_interventions(runs[index])
                        yield pb.GenerateResponse(
                            sample_finished=pb.SampleFinished(
                                sample_index=index,
                                reason=_FINISH_REASONS[event.reason],
                                captured_positions=event.captured_positions.tolist(),
                            )
                        )
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=_usage(call)))

    def _chunks(
        self, rows: Rows, index: int, element_type: ElementType, call: Call
    ) -> Iterator[capture_pb2.ActivationChunk]:
        for chunk in chunks(rows, index, self._engine.info.element_type, element_type):
            yield chunk
            sent = len(chunk.rows.data)
            call.activation_bytes += sent
            metrics.CAPTURED_ROWS.inc(len(chunk.positions))
            metrics.CAPTURED_BYTES.inc(sent)


def _check_prompt_count(count: int, limit: int) -> None:
    if count == 0:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the request has no prompts; send one", field="prompts"
        )
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_PROMPTS,
            f"{count} prompts were sent, but a call may have at most {limit}; make several calls",
            field="prompts",
            metadata={"prompts": count, "limit": limit},
        )


def _positions(run: Run) -> list[int]:
    if run.capture is None:
        return []
    return run.capture.spans.within(0, len(run.token_ids)).tolist()


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


def _count_interventions(run: Run) -> None:
    for edit in run.interventions:
        metrics.INTERVENTIONS.labels(type(edit).__name__.lower()).inc()


def _usage(call: Call) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        activation_bytes=call.activation_bytes,
    )
