"""An NLA that is loaded here, asked by messages."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import FieldPath
from actserve_server.domain.sites import Site
from actserve_server.engine.fair_threads import off_loop
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.explanations import Asking, ExplainEvent
from actserve_server.rpc.explanations import (
    baseline_names,
    explaining,
    nla_descriptions,
    nla_inputs,
)
from actserve_server.rpc.requests import site_fields
from actserve_server.rpc.responses import chunks
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.calls import Call
from actserve_server.stages import Stage

ExplainRows = Callable[[np.ndarray], AsyncGenerator[pb.ExplanationEvent, None]]
"""Explains the rows of a call, float32 [rows, width]."""


class LocalNla:
    """What `ServedNla` promises, of an autoencoder."""

    def __init__(self, nla: Autoencoder) -> None:
        self._nla = nla

    @property
    def site(self) -> Site:
        return self._nla.site

    @property
    def max_rows(self) -> int:
        return self._nla.info.max_rows

    @property
    def verbalizes(self) -> bool:
        return self._nla.info.profile.verbalizer is not None

    @property
    def reconstructs(self) -> bool:
        return self._nla.info.profile.reconstructor is not None

    async def describe(self, tenant: str) -> pb.Nla:
        return nla_descriptions.to_wire(self._nla, tenant)

    async def explain(
        self, request: pb.ExplainActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        # In a thread, here and below: the rows may be tens of megabytes.
        rows = await off_loop(
            nla_inputs.rows, request.activations, self._nla.info, ("activations",)
        )
        where = nla_inputs.positions(request.positions, len(rows), ("positions",))
        placed = where is not None
        asking = self._asking(request.spec, len(rows), call, placed=placed)
        async with (
            self._nla.asked(call.id, asking, call) as explain,
            aclosing(self._explained(len(rows), explain(rows, where), call)) as events,
        ):
            async for event in events:
                yield event

    @asynccontextmanager
    async def asked(
        self, spec: pb.ExplainSpec, positions: Sequence[int], call: Call
    ) -> AsyncGenerator[ExplainRows, None]:
        asking = self._asking(spec, len(positions), call, placed=True)
        async with self._nla.asked(call.id, asking, call) as explain:
            yield lambda rows: self._explained(len(rows), explain(rows, positions), call)

    async def compare(
        self, request: pb.CompareActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        rows = await off_loop(
            nla_inputs.differences,
            request.activations,
            request.reference,
            self._nla.info,
            (("activations",), ("reference",)),
        )
        asking = self._asking(request.spec, len(rows), call, placed=False)
        async with (
            self._nla.asked(call.id, asking, call) as explain,
            aclosing(self._explained(len(rows), explain(rows, differences=True), call)) as events,
        ):
            async for event in events:
                yield event

    async def reconstruct(
        self, request: pb.ReconstructActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]:
        info = self._nla.info
        nla_descriptions.check_reconstructs(info, "reconstructing", ("nla",))
        texts = nla_inputs.texts(request.texts, info, ("texts",))
        async with self._nla.reading(call.id, texts, call) as blocks:
            yield pb.ReconstructActivationsResponse(
                started=pb.ReconstructStarted(
                    call_id=call.id,
                    nla=nla_descriptions.name_of(info),
                    rows=len(texts),
                    width=info.profile.width,
                )
            )
            async for first, rows in blocks:
                for chunk in chunks.reconstructed(first, rows):
                    yield pb.ReconstructActivationsResponse(rows=chunk)
                    call.activation_bytes += len(chunk.rows.data)
        yield pb.ReconstructActivationsResponse(finished=pb.ReconstructFinished(usage=usage(call)))

    async def score(
        self, request: pb.ScoreExplanationsRequest, call: Call
    ) -> pb.ScoreExplanationsResponse:
        info = self._nla.info
        nla_descriptions.check_reconstructs(info, "scoring", ("nla",))
        texts = nla_inputs.texts(request.texts, info, ("texts",))
        rows = await off_loop(nla_inputs.rows, request.activations, info, ("activations",))
        nla_inputs.check_one_each(len(texts), len(rows), ("texts",))
        name = nla_descriptions.name_of(info)
        baseline = baseline_names.look_up(
            request.baseline, self._nla, name, ("baseline",), call.principal.tenant
        )
        scores = await self._nla.score(call.id, rows, texts, baseline, call)
        return pb.ScoreExplanationsResponse(scores=map(explaining.score, scores), usage=usage(call))

    async def set_baseline(
        self, request: pb.SetExplanationBaselineRequest, call: Call
    ) -> pb.SetExplanationBaselineResponse:
        _, short = baseline_names.parse_name(request.name, ("name",))
        rows = await off_loop(
            nla_inputs.rows, request.activations, self._nla.info, ("activations",)
        )
        stored = await off_loop(
            self._nla.set_baseline, short, rows, call.principal.tenant, shared=request.shared
        )
        return pb.SetExplanationBaselineResponse(
            baseline=baseline_names.to_wire(nla_descriptions.name_of(self._nla.info), short, stored)
        )

    async def delete_baseline(
        self, request: pb.DeleteExplanationBaselineRequest, call: Call
    ) -> pb.DeleteExplanationBaselineResponse:
        _, short = baseline_names.parse_name(request.name, ("name",))
        with baseline_names.in_full(request.name):
            self._nla.delete_baseline(short, call.principal.tenant, shared=request.shared)
        return pb.DeleteExplanationBaselineResponse()

    def check_reconstructs(self, what: str, field: FieldPath) -> None:
        nla_descriptions.check_reconstructs(self._nla.info, what, field)

    async def edit(self, run_id: str, original: str, edited: str, call: Call) -> np.ndarray:
        return await self._nla.edit(run_id, original, edited, call)

    def _asking(self, spec: pb.ExplainSpec, rows: int, call: Call, *, placed: bool) -> Asking:
        tenant = call.principal.tenant
        return explaining.asking(spec, self._nla, rows, ("spec",), tenant, placed=placed)

    async def _explained(
        self, rows: int, events: AsyncGenerator[ExplainEvent, None], call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        """Closes `events` at the end."""
        name = nla_descriptions.name_of(self._nla.info)
        yield pb.ExplanationEvent(
            started=pb.ExplainStarted(
                call_id=call.id, nla=name, site=site_fields.to_wire(self.site), rows=rows
            )
        )
        async with aclosing(call.spread(Stage.EXPLAIN).timed(events)) as timed:
            async for event in timed:
                wire = explaining.to_wire(event)
                metrics.EXPLANATIONS.labels(name).inc(wire.HasField("explanation"))
                yield wire
        yield pb.ExplanationEvent(finished=pb.ExplainFinished(usage=usage(call)))
