"""Replays of prompts by monitors."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.monitor_registry import not_found
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.fit_calls import FitCalls
from actserve_server.rpc.requests import monitor_names
from actserve_server.rpc.requests.replayed_items import Replayed, ReplayedItems
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts

MAX_MONITORS = 8
"""That one replay scores by."""


class ReplayCalls:
    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        nlas: Nlas,
        parts: WatchingParts,
        fits: FitCalls,
    ) -> None:
        self._engine = engine
        self._sources = sources
        self._nlas = nlas
        self._registry = parts.registry
        self._live = parts.live
        self._fits = fits

    async def replay(
        self, request: pb.ReplayMonitorsRequest
    ) -> AsyncGenerator[pb.ReplayMonitorsResponse, None]:
        call, info = current_call(), self._engine.info
        tenant = call.principal.tenant
        _check(request, info)
        if any(item.interventions for item in request.items):
            call.principal.require(Role.EXPERIMENTER, "changing activations")
        monitors: dict[str, Replayed] = {}
        for index, name in enumerate(request.monitors):
            found = await self._replayed(name, tenant, ("monitors", index))
            if found.name in monitors:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"the monitor {found.name} is named twice; name it once",
                    field=("monitors", index),
                )
            monitors[found.name] = found
        own = self._sources.of(tenant)
        every = list(monitors.values())
        items = ReplayedItems(request, every, self._engine, own, self._nlas, call)
        admitted = self._engine.enter(tenant, checked=info)
        yield pb.ReplayMonitorsResponse(started=pb.ReplayStarted(call_id=call.id))
        parts = [partial(items.serve, index, admitted) for index in range(len(request.items))]
        async with aclosing(admitted.merge(parts)) as events:
            async for _, event in events:
                yield event
        yield pb.ReplayMonitorsResponse(finished=pb.ReplayFinished(usage=usage(call)))

    async def _replayed(self, name: str, tenant: str, field: FieldPath) -> Replayed:
        """The monitor of that name, paused or not."""
        monitor = monitor_names.monitor(name, self._engine.info, field)
        live = await self._live.find(tenant, monitor)
        if live is not None and live.ready is None:  # It may have been fitted just now.
            await self._live.refresh()
            live = await self._live.find(tenant, monitor)
        if live is None:
            raise not_found(name, field)
        if live.ready is not None:
            return Replayed(self._registry.name(monitor), live.stored.etag, live.ready)
        if live.error is not None:
            raise live.error.again()
        await self._fits.check_made(live.stored, field)
        raise ActserveError(
            Reason.RESOURCE_NOT_READY,
            f"the monitor {monitor!r} was stored for another checkpoint of the model than the one "
            "that is served; make it again",
            field=field,
            metadata={"resource_name": self._registry.name(monitor)},
        )


def _check(request: pb.ReplayMonitorsRequest, info: ModelInfo) -> None:
    """Raises unless there are monitors and items, no more than may be."""
    for name, what in (("monitors", request.monitors), ("items", request.items)):
        if not what:
            raise ActserveError(
                Reason.FIELD_REQUIRED, f"the request has no {name}; send one", field=(name,)
            )
    if len(request.monitors) > MAX_MONITORS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(request.monitors)} monitors are named, but a replay may have at most "
            f"{MAX_MONITORS}; make several calls",
            field=("monitors",),
            metadata={"monitors": len(request.monitors), "limit": MAX_MONITORS},
        )
    count, limit = len(request.items), info.limits.max_items
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_ITEMS,
            f"{count} items were sent, but a call may have at most {limit}; make several calls",
            field=("items",),
            metadata={"items": count, "limit": limit},
        )
