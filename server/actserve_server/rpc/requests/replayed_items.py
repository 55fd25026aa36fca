"""The items of a replay: each is checked, run and scored by itself, and ends with its own
status."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from actserve.v1 import generation_service_pb2, source_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import OF_THE_CALL, ActserveError, FieldPath, Reason
from actserve_server.domain.positions import Selection
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Finished, Rows, Run
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.monitors.sample_scores import SampleScores
from actserve_server.monitors.watched import Level, Watcher
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    adapter_fields,
    interventions,
    position_selectors,
    prompt_fields,
)
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.items import MAX_KEY_BYTES
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.monitor_fields import MonitorRequest
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import monitor_scores, reports
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call

MAX_BYTES = (4 << 20) - (64 << 10)
"""Of the scores of an item: what gRPC clients accept as one message unless told otherwise, less
what is beside them."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A monitor that items are scored by."""

    name: str
    etag: str
    made: MonitorRequest

    def at(self, prompt: TokenizedPrompt, selection: Selection | None) -> Watcher:
        """As it scores a prompt, without acting; of a selection in place of its own."""
        watcher = self.made.watcher(self.name, self.etag, prompt)
        levels = tuple(Level(each.name, each.threshold) for each in watcher.levels)
        return replace(watcher, levels=levels, selection=selection or watcher.selection)


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """One that has been checked and can run."""

    run: Run
    edits: tuple[InterventionRequest, ...]
    scores: SampleScores


class ReplayedItems:
    """Those of one call."""

    def __init__(
        self,
        request: pb.ReplayMonitorsRequest,
        monitors: Sequence[Replayed],
        engine: AdmittedEngine,
        sources: Sources,
        nlas: Nlas,
        call: Call,
    ) -> None:
        self._request = request
        self._monitors = monitors
        self._engine = engine
        self._sources = sources
        self._nlas = nlas
        self._call = call
        self._kept_rows = KeptCache(sources.kept.copies)

    async def serve(
        self, index: int, admitted: AdmittedCall
    ) -> AsyncGenerator[pb.ReplayMonitorsResponse, None]:
        """The event of one item."""
        told = pb.ReplayedItem(item_index=index, key=self._request.items[index].key)
        try:
            item = await self._prepare(index)
            self._call.prompt_tokens += len(item.run.token_ids)
            told.scores.extend(await self._scores(item, admitted))
        except ActserveError as error:
            if error.reason in OF_THE_CALL:
                raise
            told.status.CopyFrom(statuses.item_status(error, self._call))
        yield pb.ReplayMonitorsResponse(item=told)

    async def _scores(
        self, item: _Item, admitted: AdmittedCall
    ) -> list[generation_service_pb2.MonitorScore]:
        """Of each monitor, in order."""
        ids = item.run.token_ids
        with reports.numbered_as_sent(item.edits):
            async with admitted.started(item.run) as events:
                async for event in events:
                    if isinstance(event, Rows):
                        item.scores.add(event.capture_index, event, ids)
                        await item.scores.score_aside()
                    elif isinstance(event, Finished):
                        reports.count(item.edits)
        item.scores.check(ids)
        told = monitor_scores.scores(
            item.scores.scores(),
            generation_service_pb2.SCORE_DETAIL_TOKEN
            if self._request.each_token
            else generation_service_pb2.SCORE_DETAIL_SAMPLE,
        )
        _check_size(told)
        return told

    async def _prepare(self, index: int) -> _Item:
        """The item, with everything checked that can be before it runs."""
        wire, at, info = self._request.items[index], ("items", index), self._engine.info
        size = len(wire.key.encode())
        if size > MAX_KEY_BYTES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the key has {size} bytes; use at most {MAX_KEY_BYTES}",
                field=(*at, "key"),
                metadata={"bytes": size, "limit": MAX_KEY_BYTES},
            )
        if not wire.HasField("prompt"):
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "the prompt is not set; send one",
                field=(*at, "prompt"),
            )
        prompt = await prompt_fields.tokenize_to_run(self._engine, wire.prompt, (*at, "prompt"))
        place = Place(prompt=prompt, run_tokens=len(prompt.ids), item=at)
        edits = await self._edits(index, at)
        own = None
        if wire.HasField("positions"):
            where = (*at, "positions")
            wanted = position_selectors.parse(wire.positions, info, where)
            with place.named():
                own = position_selectors.selection(wanted, place, where)
        scores = SampleScores(
            [each.at(prompt, own) for each in self._monitors], each_token=self._request.each_token
        )
        run = Run(
            id=f"{self._call.id}-{index}",
            token_ids=prompt.ids,
            captures=scores.captures,
            interventions=interventions.placed(edits, place),
            adapter=adapter_fields.adapter(wire.adapter, info, (*at, "adapter")),
            tenant=self._call.principal.tenant,
        )
        with place.named():
            self._engine.check(run, index)
        return _Item(run, edits, scores)

    async def _edits(self, index: int, at: FieldPath) -> tuple[InterventionRequest, ...]:
        wire, field = self._request.items[index].interventions, (*at, "interventions")
        if not wire:
            return ()
        interventions.check_count(len(wire), self._engine.info, field)

        def earlier(source: source_pb2.KeptByItem, where: FieldPath) -> str:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "items of a replay keep nothing; keep rows by a fetch, and name them",
                field=where,
            )

        return await interventions.interventions(
            wire,
            self._sources,
            self._nlas,
            self._engine.info,
            field,
            earlier,
            self._kept_rows,
        )


def _check_size(scores: Sequence[generation_service_pb2.MonitorScore]) -> None:
    size = sum(each.ByteSize() for each in scores)
    if size > MAX_BYTES:
        raise ActserveError(
            Reason.MESSAGE_TOO_LARGE,
            f"the scores of each token take {size} bytes, but those of an item may have at most "
            f"{MAX_BYTES}; score by fewer monitors at a time, or shorter prompts",
            metadata={"bytes": size, "limit": MAX_BYTES},
        )
