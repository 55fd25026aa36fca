"""Calls to generate, from what they ask for to their events, whichever door they came through.

What needs no prompt is read first, so that whoever renders prompts in another way can refuse a call
before it does.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import intervention_pb2, readout_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Finished, Run, Tokens
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.watched import WatchedCall, WatchedFinished
from actserve_server.monitors.watching import Flagged, Sample, WatchedEvent
from actserve_server.monitors.watching import watched as watch
from actserve_server.readouts.plan import Plan
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    adapter_fields,
    interventions,
    readout_fields,
    watched_calls,
)
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.readout_fields import Readouts
from actserve_server.rpc.requests.request_ids import request_digest
from actserve_server.rpc.requests.sampling_fields import SamplingRequest
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.requests.watched_calls import WatchedBy
from actserve_server.rpc.responses import monitor_scores, reports
from actserve_server.rpc.responses.call_results import Event, Results
from actserve_server.rpc.responses.endings import ending
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What a call asks for beside its prompt and how to sample, checked."""

    request: pb.GenerateRequest
    info: ModelInfo
    """What it was checked against."""
    readouts: Readouts
    edits: Sequence[InterventionRequest]
    watched_by: WatchedBy
    adapter: str
    """The id of the LoRA adapter to run with, if any."""

    @property
    def looks_inside(self) -> bool:
        """Whether it is more than a plain generation."""
        return bool(self.readouts.requests or self.edits or self.watched_by.monitors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """A call that has begun."""

    events: AsyncGenerator[tuple[int, Event | Tokens], None]
    """By sample of its prompt: its tokens, and else a field of a response. Closing it aborts what
    runs."""
    kept: Sequence[readout_pb2.KeptReadout]
    """The names of what will be kept."""


class Generations:
    """Begins them."""

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

    async def read(self, request: pb.GenerateRequest) -> Wanted:
        """Checks all fields but the prompt and the sampling, which nobody looks at here."""
        info, tenant = self._engine.info, current_call().principal.tenant
        _check_no_statistics(request.readouts)
        watched_by = await watched_calls.watched_by(request, self._watching.live, tenant, info)
        wanted = await self.readouts(request.readouts)
        edits = await self.interventions(request.interventions)
        await watched_calls.check_interventions(edits, watched_by, info)
        adapter = adapter_fields.adapter(request.adapter, info, ("adapter",))
        adapter_fields.check_readouts(adapter, wanted, (), info, ("adapter",))
        return Wanted(
            request=request,
            info=info,
            readouts=wanted,
            edits=edits,
            watched_by=watched_by,
            adapter=adapter,
        )

    async def begin(
        self,
        wanted: Wanted,
        prompt: TokenizedPrompt,
        sampled: SamplingRequest,
        first_sample: int = 0,
    ) -> Generation:
        """Raises what is wrong with the call at this prompt, or that it comes at a bad time.
        `first_sample` numbers the first of its samples, where a call has several prompts."""
        call, request, info = current_call(), wanted.request, wanted.info
        watchers = await wanted.watched_by.at(prompt)
        if any(each.acts for each in watchers):
            sampled = watched_calls.leaving_room(sampled, len(prompt.ids), info)
        place = Place(prompt=prompt, run_tokens=len(prompt.ids) + sampled.base.max_tokens - 1)
        plan = wanted.readouts.at(place)
        applied = interventions.placed(wanted.edits, place)
        runs = [
            Run(
                id=f"{call.id}-{first_sample + sample}",
                token_ids=prompt.ids,
                sampling=sampled.of(sample),
                captures=plan.captures,
                interventions=applied,
                adapter=wanted.adapter,
                tenant=call.principal.tenant,
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
                    index=first_sample + index,
                    call=watched,
                    watchers=watchers,
                    each_token=request.score_detail == pb.SCORE_DETAIL_TOKEN,
                    prompt_texts=prompt.texts,
                    text_tokens=self._watching.alert_text_tokens,
                    switched_on=partial(monitor_scores.note_switched_on, wanted.watched_by),
                )
                for index, run in enumerate(runs)
            ]
            events = self._run_watched(samples, info)
        else:
            events = self._engine.run_all(runs, info)
        call.prompt_tokens += len(prompt.ids)
        digest = await request_digest(request, ("request_id",))
        results = Results(self._engine, self.own().kept, wanted.readouts, call, digest)
        kept = [
            name
            for index in range(len(runs))
            for name in results.open(index, plan, adapter=wanted.adapter)
        ]
        told = self._told(results, events, wanted, plan, watched)
        return Generation(events=told, kept=kept)

    async def readouts(self, wire: Sequence[readout_pb2.Readout]) -> Readouts:
        if any(each.HasField("keep") for each in wire):
            current_call().principal.require(Role.EXPERIMENTER, "keeping activations")
        return await readout_fields.readouts(wire, self.own(), self._engine, ("readouts",))

    async def interventions(
        self, wire: Sequence[intervention_pb2.Intervention]
    ) -> Sequence[InterventionRequest]:
        if wire:
            require_changes()
        return await interventions.interventions(
            wire, self.own(), self._autoencoders, self._engine.info, ("interventions",)
        )

    def own(self) -> Sources:
        """What the caller's tenant may name."""
        return self._sources.of(current_call().principal.tenant)

    async def _told(
        self,
        results: Results,
        events: AsyncGenerator[tuple[int, WatchedEvent], None],
        wanted: Wanted,
        plan: Plan,
        watched: WatchedCall,
    ) -> AsyncGenerator[tuple[int, Event | Tokens], None]:
        call, edits, detail = current_call(), wanted.edits, wanted.request.score_detail
        async with aclosing(results.stream(events)) as stream:
            with reports.numbered_as_sent(edits):
                async for index, event in stream:
                    match event:
                        case dict():
                            yield index, event
                        case Tokens():
                            call.output_tokens += len(event.ids)
                            yield index, event
                        case Flagged():
                            yield index, {"alert": monitor_scores.flagged(event.crossing, watched)}
                        case Finished():
                            reports.count(edits)
                            self._count(event, wanted.watched_by)
                            finished = pb.SampleFinished(
                                sample_index=index,
                                positions=_read(plan, event),
                                interventions=reports.to_wire(edits, event.interventions),
                                kept=await results.close(index),
                                monitor_scores=_scores(event, detail),
                                monitor_interventions=_intervened(event, wanted.watched_by),
                                **ending(event),
                            )
                            yield index, {"sample_finished": finished}

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


def require_changes() -> None:
    current_call().principal.require(Role.EXPERIMENTER, "changing activations")


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


def _intervened(event: Finished, by: WatchedBy) -> list[pb.MonitorInterventions]:
    found = event.intervened if isinstance(event, WatchedFinished) else ()
    return monitor_scores.interventions(found, by)
