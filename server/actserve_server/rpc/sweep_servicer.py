"""SweepService: translates, nothing else.

What belongs to the whole sweep is checked before `started` is sent. Cells that are stored come
first, then the others as they finish.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from actserve.v1 import sweep_service_pb2 as pb
from actserve.v1 import sweep_service_pb2_grpc
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import watched_calls
from actserve_server.rpc.requests.sweep_fields import SweepRequest, sweep_request
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import cell_messages, model_descriptions
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport import metrics, statuses
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts
from actserve_server.steering.cell_writer import writing
from actserve_server.steering.resume_tokens import CellsHad
from actserve_server.steering.sweep_cells import CellResult, Cells
from actserve_server.steering.sweep_grid import Cell
from actserve_server.steering.sweeps import sweep
from actserve_server.storage.stored_cells import StoredCells, SweepKey

READ_AT_ONCE = 256
"""Stored cells in memory."""


class SweepServicer(sweep_service_pb2_grpc.SweepServiceServicer):
    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        autoencoders: Nlas,
        stored: StoredCells,
        watching: WatchingParts,
    ) -> None:
        self._engine = engine
        self._watching = watching
        self._sources = sources
        self._autoencoders = autoencoders
        self._stored = stored

    async def RunSweep(  # noqa: N802
        self, request: pb.RunSweepRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.RunSweepResponse, None]:
        call, info = current_call(), self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        if any(variant.interventions for variant in request.variants):
            call.principal.require(Role.EXPERIMENTER, "changing activations")
        if request.HasField("sampling"):
            await watched_calls.check_unwatched(self._watching.live, ("sampling",))
        own = self._sources.of(call.principal.tenant)
        asked = await sweep_request(request, self._engine, own, self._autoencoders)
        had = CellsHad.of(request.resume_token, asked.digest, len(asked.grid))
        key = SweepKey(call.principal.tenant, asked.digest)
        stored = frozenset() if request.afresh else await self._stored.numbers(key)
        stored = sorted(number for number in stored if number not in had)
        admitted = self._engine.enter(call.principal.tenant, checked=info)

        yield pb.RunSweepResponse(
            started=pb.SweepStarted(
                call_id=call.id,
                cells=len(asked.grid),
                skipped_cells=len(had),
                stored_cells=len(stored),
            )
        )
        for start in range(0, len(stored), READ_AT_ONCE):
            read = await self._stored.read(key, stored[start : start + READ_AT_ONCE])
            for number in sorted(read):
                cell = pb.SweepCell.FromString(read[number])
                cell.stored = True
                metrics.SWEEP_CELLS.labels("stored").inc()
                yield _next(cell, number, had)
        async with aclosing(self._run(request, asked, admitted, key, had)) as cells:
            async for number, cell in cells:
                yield _next(cell, number, had)
        yield pb.RunSweepResponse(finished=pb.SweepFinished(usage=usage(call)))

    async def _run(
        self,
        request: pb.RunSweepRequest,
        asked: SweepRequest,
        admitted: AdmittedCall,
        key: SweepKey,
        had: CellsHad,
    ) -> AsyncGenerator[tuple[int, pb.SweepCell], None]:
        """The cells that are neither stored nor had, with their numbers."""
        call, grid = current_call(), asked.grid
        cells = Cells(self._engine, admitted, asked.asked, key.tenant, call.id, call)
        left = [number for number in range(len(grid)) if number not in had]
        async with writing(self._stored, key) as writer:

            async def done(cell: Cell, result: CellResult) -> None:
                _count(request, asked, cell)
                message = cell_messages.served(request, cell, result)
                await writer.add(cell.number, message.SerializeToString())

            outcomes = sweep(admitted, grid, left, cells, asked.cells.prepare, done)
            async with aclosing(outcomes):
                async for cell, outcome in outcomes:
                    failed = isinstance(outcome, ActserveError)
                    metrics.SWEEP_CELLS.labels("failed" if failed else "run").inc()
                    if isinstance(outcome, ActserveError):
                        status = statuses.item_status(outcome, call)
                        yield cell.number, cell_messages.failed(request, cell, status)
                    else:
                        yield cell.number, cell_messages.served(request, cell, outcome)


def _next(cell: pb.SweepCell, number: int, had: CellsHad) -> pb.RunSweepResponse:
    """The event of a cell, from which on the reader has it."""
    had.add(number)
    cell.resume_token = had.token()
    return pb.RunSweepResponse(cell=cell)


def _count(request: pb.RunSweepRequest, asked: SweepRequest, cell: Cell) -> None:
    """Counts the interventions of a cell, once for each of its runs."""
    for each in request.variants[cell.variant].interventions:
        kind = each.WhichOneof("operation")
        metrics.INTERVENTIONS.labels(kind).inc(asked.asked.changed_runs)
