"""The items of a fetch: each is checked, run and read by itself, and ends with its own status.

An item is prepared when its turn comes, so that a thousand of them take no more memory than those
that run; with `fail_fast` all are prepared before anything runs, so that a call that is refused
costs nothing. One that uses rows which an earlier item keeps waits until that one is over.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2, source_pb2
from actserve_server.domain.errors import OF_THE_CALL, ActserveError, FieldPath, Reason
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Finished, Rows, Run, RunEvent
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.readouts.kept import RESOURCE_TYPE
from actserve_server.readouts.plan import KeepReadout, Plan
from actserve_server.readouts.statistics import RowLabels
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import (
    adapter_fields,
    dose_limit,
    interventions,
    position_selectors,
    prompt_fields,
    readout_fields,
    vector_sources,
)
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.readout_fields import Readouts
from actserve_server.rpc.requests.required_fields import required
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import reports
from actserve_server.rpc.responses.call_results import Results
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call

MAX_KEY_BYTES = 256
"""Of an item's key or a label, in UTF-8. They are told again."""
MAX_POSITION_LABELS = 64
"""Of one item."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Item:
    """One that has been checked and can run."""

    prompt: TokenizedPrompt
    plan: Plan
    edits: tuple[InterventionRequest, ...]
    """Those of the call, then its own."""
    labels: RowLabels
    run: Run


class Items:
    """Those of one call, whose shared readouts and interventions have been checked."""

    def __init__(
        self,
        request: pb.FetchActivationsRequest,
        engine: AdmittedEngine,
        sources: Sources,
        autoencoders: Nlas,
        wanted: Readouts,
        edits: Sequence[InterventionRequest],
        call: Call,
        digest: bytes | None,
    ) -> None:
        """Raises RESOURCE_NOT_FOUND for an adapter of the call that is not served."""
        self._request = request
        self._engine = engine
        self._adapter = adapter_fields.adapter(request.adapter, engine.info, ("adapter",))
        self._sources = sources
        self._autoencoders = autoencoders
        self._wanted = wanted
        self._edits = tuple(edits)
        self._call = call
        self.results = Results(engine, sources.kept, wanted, call, digest)
        self._kept_rows = KeptCache(sources.kept.copies)
        """Of all items, so that a short request does not expand to the limit for each."""
        self._shared_prompt: TokenizedPrompt | None = None
        self._prepared: dict[int, Item] = {}
        self._needs: Mapping[int, frozenset[int]] = {}
        self._over: dict[int, asyncio.Event] = {}
        """Of those that others need."""
        self._names: dict[tuple[int, int], str] = {}
        """Of what is kept, by item and readout, once its item is complete."""

    async def check(self) -> None:
        """Checks what no item can be without: the prompt that they share, sources that are not
        served, and with `fail_fast` every item that needs no other."""
        request = self._request
        if any(not item.HasField("prompt") for item in request.items):
            if not request.HasField("prompt"):
                missing = next(i for i, x in enumerate(request.items) if not x.HasField("prompt"))
                raise ActserveError(
                    Reason.FIELD_REQUIRED,
                    f"item {missing} has no prompt, and the call has no shared one; set either",
                    field=("items", missing, "prompt"),
                )
            self._shared_prompt = await prompt_fields.tokenize_to_run(
                self._engine, request.prompt, ("prompt",)
            )
        # In a thread: it looks at every message of the request.
        self._needs = await off_loop(_needs, request)
        self._over = {index: asyncio.Event() for needed in self._needs.values() for index in needed}
        for index in range(len(request.items)) if request.fail_fast else ():
            if index not in self._needs:
                self._prepared[index] = await self.prepare(index)

    async def serve(
        self, index: int, admitted: AdmittedCall
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        """Everything that is sent of one item."""
        wire = self._request.items[index]
        closed = pb.ItemFinished(item_index=index, key=wire.key)
        try:
            item = self._prepared.pop(index, None) or await self.prepare(index)
            kept = self.results.open(index, item.plan, item.labels, adapter=item.run.adapter)
            self._call.prompt_tokens += len(item.run.token_ids)
            # In line before it is announced, so that items run together however they are read.
            async with admitted.started(item.run) as events:
                yield pb.FetchActivationsResponse(
                    item_started=pb.ItemStarted(
                        item_index=index,
                        key=wire.key,
                        prompt=prompt_fields.to_wire(item.prompt, ids_only=self._request.ids_only),
                        positions=_selected(item.plan, item.prompt),
                        kept=kept,
                    )
                )
                async with aclosing(self._read(index, item, events, closed)) as parts:
                    async for part in parts:
                        yield part
        except ActserveError as error:
            if self._request.fail_fast or error.reason in OF_THE_CALL:
                raise
            closed.Clear()
            closed.item_index, closed.key = index, wire.key
            closed.status.CopyFrom(statuses.item_status(error, self._call))
        finally:
            self.results.drop(index)
            if index in self._over:
                self._over[index].set()
        yield pb.FetchActivationsResponse(item_finished=closed)

    async def _read(
        self,
        index: int,
        item: Item,
        events: AsyncGenerator[RunEvent, None],
        closed: pb.ItemFinished,
    ) -> AsyncGenerator[pb.FetchActivationsResponse, None]:
        """What is read of an item as it runs; `closed` is told how it went."""
        with reports.numbered_as_sent(item.edits):
            async for event in events:
                if not isinstance(event, Rows | Finished):
                    continue
                async with aclosing(self.results.read(index, event)) as parts:
                    async for part in parts:
                        yield pb.FetchActivationsResponse(**part)
                if isinstance(event, Finished):
                    reports.count(item.edits)
                    closed.interventions.extend(reports.to_wire(item.edits, event.interventions))
        closed.kept.extend(await self.results.close(index))
        for each in closed.kept:
            self._names[index, each.readout_index] = each.name

    async def prepare(self, index: int) -> Item:
        """The item, with everything checked that can be before it runs."""
        wire, at = self._request.items[index], ("items", index)
        _check_key(wire.key, (*at, "key"))
        prompt = self._shared_prompt
        if prompt is None or wire.HasField("prompt"):
            prompt = await prompt_fields.tokenize_to_run(self._engine, wire.prompt, (*at, "prompt"))
        place = Place(prompt=prompt, run_tokens=len(prompt.ids), item=at)
        info, own = self._engine.info, await self._own_edits(index, wire, at)
        edits = (*self._edits, *own)
        if own and dose_limit.limit_of_call(info) is not None:
            edits = await off_loop(interventions.limited, edits, info)
        selector = None
        if wire.HasField("positions"):
            where = (*at, "positions")
            selector = position_selectors.parse(wire.positions, self._engine.info, where), where
        only = self._readouts_of(wire, (*at, "readout_indices"))
        plan = self._wanted.at(place, selector, only)
        adapter = self._adapter_of(wire, only, at)
        run = Run(
            id=f"{self._call.id}-{index}",
            token_ids=prompt.ids,
            captures=plan.captures,
            interventions=interventions.placed(edits, place),
            adapter=adapter,
            tenant=self._call.principal.tenant,
        )
        with place.named():
            self._engine.check(run, index)
        return Item(
            prompt=prompt, plan=plan, edits=edits, labels=self._labels(wire, place, at), run=run
        )

    def _adapter_of(self, wire: pb.FetchItem, only: frozenset[int], at: FieldPath) -> str:
        """The id of the adapter that an item runs with."""
        info, field = self._engine.info, (*at, "adapter") if wire.adapter else ("adapter",)
        adapter = adapter_fields.adapter(wire.adapter, info, field) or self._adapter
        adapter_fields.check_readouts(adapter, self._wanted, only, info, field)
        return adapter

    def _readouts_of(self, wire: pb.FetchItem, field: FieldPath) -> frozenset[int]:
        """Which readouts read of an item; all when empty."""
        count = len(self._wanted.requests)
        for place, index in enumerate(wire.readout_indices):
            if index >= count:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"there is no readout {index}; the call has {count}, from 0 on",
                    field=(*field, place),
                    metadata={"readout_index": index, "limit": count - 1},
                )
        return frozenset(wire.readout_indices)

    def _labels(self, wire: pb.FetchItem, place: Place, at: FieldPath) -> RowLabels:
        _check_label(wire.label, (*at, "label"))
        count = len(wire.position_labels)
        if count > MAX_POSITION_LABELS:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the item has {count} position_labels, but may have at most {MAX_POSITION_LABELS}",
                field=(*at, "position_labels"),
                metadata={"position_labels": count, "limit": MAX_POSITION_LABELS},
            )
        if count and self._wanted.counts_reduced:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "a row that stands for all positions has no label of some of them; leave "
                "position_labels empty, or the reduction unset",
                field=(*at, "position_labels"),
            )
        parts = []
        for index, each in enumerate(wire.position_labels):
            field = (*at, "position_labels", index)
            _check_label(each.label, (*field, "label"), required=True)
            where = (*field, "positions")
            selector = position_selectors.selector(each, self._engine.info, where)
            found = position_selectors.selection(selector, place, where, may_be_empty=True)
            parts.append((each.label, found.among(place.prompt.ids)))
        whole = wire.label or (None if count else "")
        return RowLabels(whole, tuple(parts))

    async def _own_edits(
        self, index: int, wire: pb.FetchItem, at: FieldPath
    ) -> tuple[InterventionRequest, ...]:
        if not wire.interventions:
            return ()
        interventions.check_count(
            len(self._edits) + len(wire.interventions),
            self._engine.info,
            (*at, "interventions"),
        )
        for needed in sorted(self._needs.get(index, ())):
            if needed < index:
                await self._over[needed].wait()

        def earlier(source: source_pb2.KeptByItem, field: FieldPath) -> str:
            return self._kept_by(source, index, field)

        return await interventions.interventions(
            wire.interventions,
            self._sources,
            self._autoencoders,
            self._engine.info,
            (*at, "interventions"),
            earlier,
            self._kept_rows,
        )

    def _kept_by(self, source: source_pb2.KeptByItem, index: int, field: FieldPath) -> str:
        """The name of what an earlier item has kept."""
        required(source, "item_index", "the earlier item", field)
        required(source, "readout_index", "the readout that keeps the rows", field)
        if source.item_index >= index:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"item {index} uses rows of item {source.item_index}, which does not come before "
                "it; put it later",
                field=(*field, "item_index"),
                metadata={"item_index": source.item_index},
            )
        keeping = [
            number
            for number, each in enumerate(self._wanted.requests)
            if isinstance(each.readout, KeepReadout)
        ]
        if source.readout_index not in keeping:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"readout {source.readout_index} keeps nothing; "
                + (f"use one of {keeping}" if keeping else "add a readout that keeps rows"),
                field=(*field, "readout_index"),
                metadata={"readout_index": source.readout_index},
            )
        name = self._names.get((source.item_index, source.readout_index))
        if name is None:
            raise ActserveError(
                Reason.KEPT_NOT_FOUND,
                f"item {source.item_index} has kept nothing by readout {source.readout_index}: it "
                "failed, leaves that readout out, or read no position; see its status",
                field=field,
                metadata={"resource_type": RESOURCE_TYPE, "resource_name": ""},
            )
        return name


def check_items(wire: pb.FetchActivationsRequest, limit: int) -> None:
    """Raises unless there are items, no more than the limit."""
    count = len(wire.items)
    if count == 0:
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the request has no items; send one", field=("items",)
        )
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_ITEMS,
            f"{count} items were sent, but a call may have at most {limit}; make several calls",
            field=("items",),
            metadata={"items": count, "limit": limit},
        )


def _needs(request: pb.FetchActivationsRequest) -> Mapping[int, frozenset[int]]:
    """Which other items an item needs, of those that need any."""
    needs: dict[int, frozenset[int]] = {}
    for index, item in enumerate(request.items):
        others = {
            each.kept.item.item_index
            for _, each in vector_sources.named(item, ())
            if each.WhichOneof("source") == "kept" and each.kept.HasField("item")
        }
        if others:
            needs[index] = frozenset(others)
    return needs


def label_count(request: pb.FetchActivationsRequest) -> int:
    """How many labels the items of a call have."""
    labels = {item.label for item in request.items}
    return len(labels.union(each.label for item in request.items for each in item.position_labels))


def _check_label(label: str, field: FieldPath, *, required: bool = False) -> None:
    size = len(label.encode())
    if required and not size:
        raise ActserveError(Reason.FIELD_REQUIRED, "the label is not set; name it", field=field)
    if size > MAX_KEY_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the label has {size} bytes; use at most {MAX_KEY_BYTES}",
            field=field,
            metadata={"bytes": size, "limit": MAX_KEY_BYTES},
        )


def _check_key(key: str, field: FieldPath) -> None:
    size = len(key.encode())
    if size > MAX_KEY_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the key has {size} bytes; use at most {MAX_KEY_BYTES}",
            field=field,
            metadata={"bytes": size, "limit": MAX_KEY_BYTES},
        )


def _selected(plan: Plan, prompt: TokenizedPrompt) -> list[readout_pb2.ReadoutPositions]:
    """Where the readouts of an item read."""
    among = {each.selection: each.selection.among(prompt.ids) for each in plan.placed}
    return readout_fields.positions_to_wire((each, among[each.selection]) for each in plan.placed)
