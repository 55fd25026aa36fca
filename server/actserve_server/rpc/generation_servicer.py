"""GenerationService: translates, nothing else.

What belongs to a whole call is checked before `started` is sent, so that an error of the request
comes first and alone.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

import grpc

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import generation_service_pb2_grpc, intervention_pb2, readout_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.domain.runs import Finished, Run, Tokens
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.watched import WatchedCall, WatchedFinished
from actserve_server.monitors.watching import Flagged, Sample, WatchedEvent
from actserve_server.monitors.watching import watched as watch
from actserve_server.readouts.plan import Plan
from actserve_server.readouts.statistics import Memory
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import interventions, prompt_fields, readout_fields, watched_calls
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.items import Items, check_items, label_count
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.readout_fields import Readouts
from actserve_server.rpc.requests.request_ids import request_digest
from actserve_server.rpc.requests.sampling_fields import sampling
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.requests.watched_calls import WatchedBy
from actserve_server.rpc.responses import model_descriptions, monitor_scores, reports
from actserve_server.rpc.responses.call_results import Results
from actserve_server.rpc.responses.endings import ending, usage
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts

STATISTICS_BYTES = 1 << 30
"""What the statistics of all calls take at most."""


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        autoencoders: Nlas,
        watching: WatchingParts,
    ) -> None:
        self._engine = engine
        self._watching = watching
        self._sources = sources
        self._autoencoders = autoencoders
        self._statistics = Memory(STATISTICS_BYTES)

    async def FetchActivations(  # noqa: N802
        self, request: pb.FetchActivationsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        check_items(request, info.limits.max_items)
        _check_any(request.readouts)
        if any(item.interventions for item in request.items):
            _require_changes()
        wanted = await self._readouts(request.readouts)
        statistics_bytes = wanted.check_statistics(label_count(request), info)
        edits = await self._interventions(request.interventions)
        digest = await request_digest(request, ("request_id",))
        items = Items(
            request, self._engine, self._own(), self._autoencoders, wanted, edits, call, digest
        )
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
        _check_no_statistics(request.readouts)
        tenant = call.principal.tenant
        watched_by = await watched_calls.watched_by(request, self._watching.live, tenant, info)
        wanted = await self._readouts(request.readouts)
        edits = await self._interventions(request.interventions)
        await watched_calls.check_interventions(edits, watched_by, info)
        prompt = await prompt_fields.tokenize_to_run(self._engine, request.prompt, ("prompt",))
        sampled = await sampling(request.sampling, self._engine, len(prompt.ids), ("sampling",))
        watchers = await watched_by.at(prompt)
        if any(each.acts for each in watchers):
            sampled = watched_calls.leaving_room(sampled, len(prompt.ids), info)
        place = Place(prompt=prompt, run_tokens=len(prompt.ids) + sampled.base.max_tokens - 1)
        plan, applied = wanted.at(place), interventions.placed(edits, place)
        runs = [
            Run(
                id=f"{call.id}-{sample}",
                token_ids=prompt.ids,
                sampling=sampled.of(sample),
                captures=plan.captures,
                interventions=applied,
                tenant=tenant,
            )
            for sample in range(sampled.samples)
        ]
        watched = self._watched_call(request)
        if watchers:
            tokens = len(prompt.ids) + sampled.base.max_tokens
            watched_calls.check_told(request.score_detail, len(watchers), tokens)
            samples = [
                Sample(
                    run=run,
                    index=index,
                    call=watched,
                    watchers=watchers,
                    each_token=request.score_detail == pb.SCORE_DETAIL_TOKEN,
                    prompt_texts=prompt.texts,
                    text_tokens=self._watching.alert_text_tokens,
                )
                for index, run in enumerate(runs)
            ]
            events = self._run_watched(samples, info)
        else:
            events = self._engine.run_all(runs, info)
        call.prompt_tokens += len(prompt.ids)
        digest = await request_digest(request, ("request_id",))
        results = Results(self._engine, self._own().kept, wanted, call, digest)
        kept = [name for index in range(len(runs)) for name in results.open(index, plan)]

        yield pb.GenerateResponse(
            started=pb.GenerateStarted(
                call_id=call.id,
                prompt=prompt_fields.to_wire(prompt),
                readouts=wanted.started(info),
                kept=kept,
            )
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
                        case Flagged():
                            alert = monitor_scores.flagged(event.crossing, watched)
                            yield pb.GenerateResponse(alert=alert)
                        case Finished():
                            reports.count(edits)
                            self._count(event, watched_by)
                            yield pb.GenerateResponse(
                                sample_finished=pb.SampleFinished(
                                    sample_index=index,
                                    positions=_read(plan, event),
                                    interventions=reports.to_wire(edits, event.interventions),
                                    kept=await results.close(index),
                                    monitor_scores=_scores(event, request.score_detail),
                                    **ending(event),
                                )
                            )
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage(call)))

    def _watched_call(self, request: pb.GenerateRequest) -> WatchedCall:
        call = current_call()
        return WatchedCall(
            tenant=call.principal.tenant,
            model_id=self._engine.info.id,
            call_id=call.id,
            end_user=request.end_user,
            trace_id=call.trace_id or "",
        )

    def _run_watched(
        self, samples: Sequence[Sample], checked: ModelInfo
    ) -> AsyncGenerator[tuple[int, WatchedEvent], None]:
        """As `AdmittedEngine.run_all`, with what monitors make of it."""
        for sample in samples:
            self._engine.check(sample.largest, sample.index)
        admitted = self._engine.enter(samples[0].run.tenant, samples[0].largest, checked)
        alerts = self._watching.alerts
        return admitted.merge([partial(watch, admitted, alerts, each) for each in samples])

    def _count(self, event: Finished, by: WatchedBy) -> None:
        """Counts the scores of a sample, of each version of a monitor by itself."""
        for each in event.scores if isinstance(event, WatchedFinished) else ():
            if each.tokens:
                stored, _ = by.monitors[each.watcher.monitor]
                self._watching.scores.count(stored, each.highest)

    async def _readouts(self, wire: Sequence[readout_pb2.Readout]) -> Readouts:
        if any(each.HasField("keep") for each in wire):
            current_call().principal.require(Role.EXPERIMENTER, "keeping activations")
        return await readout_fields.readouts(wire, self._own().kept, self._engine, ("readouts",))

    async def _interventions(
        self, wire: Sequence[intervention_pb2.Intervention]
    ) -> Sequence[InterventionRequest]:
        if wire:
            _require_changes()
        return await interventions.interventions(
            wire, self._own(), self._autoencoders, self._engine.info, ("interventions",)
        )

    def _own(self) -> Sources:
        """What the caller's tenant may name."""
        return self._sources.of(current_call().principal.tenant)


def _require_changes() -> None:
    current_call().principal.require(Role.EXPERIMENTER, "changing activations")


def _check_any(wire: Sequence[readout_pb2.Readout]) -> None:
    if not wire:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the request has no readouts, so nothing would be read; send one",
            field=("readouts",),
        )


def _check_no_statistics(wire: Sequence[readout_pb2.Readout]) -> None:
    for index, each in enumerate(wire):
        if each.rows.HasField("statistics"):
            raise ActserveError(
                Reason.FIELD_INVALID,
                "statistics are of the items of FetchActivations; leave them unset to generate",
                field=("readouts", index, "rows", "statistics"),
            )


def _read(plan: Plan, event: Finished) -> list[readout_pb2.ReadoutPositions]:
    """Where the readouts of a sample have read."""
    return readout_fields.positions_to_wire(
        (each, event.captured_positions[parts[0]])
        for each, parts in zip(plan.placed, plan.parts, strict=True)
    )


def _scores(event: Finished, detail: int) -> list[pb.MonitorScore]:
    found = event.scores if isinstance(event, WatchedFinished) else ()
    return monitor_scores.scores(found, detail)


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
