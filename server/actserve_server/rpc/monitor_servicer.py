"""MonitorService: translates, nothing else."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress

import grpc

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import monitor_service_pb2_grpc
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.monitor_registry import ID
from actserve_server.monitors.stored_monitors import Definition, NewMonitor, StoredMonitor
from actserve_server.rpc.alert_calls import AlertCalls
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.fit_calls import FitCalls
from actserve_server.rpc.replay_calls import ReplayCalls
from actserve_server.rpc.requests import (
    choosing_monitors,
    monitor_definitions,
    monitor_fields,
    monitor_names,
    pages,
)
from actserve_server.rpc.requests.monitor_definitions import World
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import (
    chunks,
    model_descriptions,
    monitor_descriptions,
)
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts

_TRIES = 8
"""Of an update, where others update the same monitor at the same time."""


class MonitorServicer(monitor_service_pb2_grpc.MonitorServiceServicer):
    def __init__(
        self, engine: AdmittedEngine, sources: Sources, nlas: Nlas, parts: WatchingParts
    ) -> None:
        self._engine = engine
        self._sources = sources
        self._nlas = nlas
        self._parts = parts
        self._registry = parts.registry
        self._fits = FitCalls(engine, sources, parts, self._world)
        self._replays = ReplayCalls(engine, sources, nlas, parts, self._fits)
        self._choosing = asyncio.Lock()
        """Of monitors that are stored at once each counts those before it."""
        self._alerts = AlertCalls(engine, parts.alert_store, parts.alert_streams, parts.alerts)

    async def CreateMonitor(  # noqa: N802
        self, request: pb.CreateMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateMonitorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "storing monitors")
        info, tenant = self._engine.info, self._tenant()
        model_descriptions.check_model(request.model, info, ("model",))
        chosen = monitor_fields.new_id(request.monitor_id)
        making = await making_request(request)
        stored = await self._registry.made(tenant, making)
        if stored is None:
            definition = await monitor_definitions.created(
                request.monitor, self._world(), self._sources.of(tenant)
            )
            new = NewMonitor(id=chosen, definition=definition, model_path=info.path)
            async with self._choosing:
                # An equal request may have been quicker, and is no second monitor.
                if await self._registry.made(tenant, making) is None:
                    await self._check_one_more(tenant, chosen, definition)
                stored = await self._registry.store(tenant, new, making)
                await self._changed()
        return pb.CreateMonitorResponse(monitor=self._to_wire(stored))

    async def GetMonitor(  # noqa: N802
        self, request: pb.GetMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMonitorResponse:
        stored = await self._registry.get(self._tenant(), self._id(request.name))
        return pb.GetMonitorResponse(monitor=(await self._fits.told([stored]))[0])

    async def ListMonitors(  # noqa: N802
        self, request: pb.ListMonitorsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListMonitorsResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        if after and not ID.fullmatch(after):
            raise pages.not_ours()
        found = await self._registry.list(self._tenant(), after, size + 1)
        page = list(chunks.fitting(await self._fits.told(found[:size])))
        more = found[len(page) - 1].id if len(found) > len(page) else ""
        return pb.ListMonitorsResponse(monitors=page, next_page_token=pages.token(more))

    async def UpdateMonitor(  # noqa: N802
        self, request: pb.UpdateMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateMonitorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "changing monitors")
        with _of_monitor():
            stored = await self._updated(request)
        return pb.UpdateMonitorResponse(monitor=self._to_wire(stored))

    async def DeleteMonitor(  # noqa: N802
        self, request: pb.DeleteMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteMonitorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deleting monitors")
        tenant, monitor = self._tenant(), self._id(request.name)
        await self._registry.delete(tenant, monitor, request.etag)
        await self._parts.fits.forget(tenant, monitor)
        await self._changed()
        return pb.DeleteMonitorResponse()

    async def FitMonitor(  # noqa: N802
        self, request: pb.FitMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.FitMonitorResponse:
        return await self._fits.fit(request)

    async def ReplayMonitors(  # noqa: N802
        self, request: pb.ReplayMonitorsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ReplayMonitorsResponse, None]:
        async with aclosing(self._replays.replay(request)) as events:
            async for event in events:
                yield event

    async def GetMonitorScores(  # noqa: N802
        self, request: pb.GetMonitorScoresRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMonitorScoresResponse:
        stored = await self._registry.get(self._tenant(), self._id(request.name))
        scores = self._parts.scores
        hours = await scores.of(stored)
        return monitor_descriptions.scores(stored, hours, scores.drift(stored, hours))

    async def WatchAlerts(  # noqa: N802
        self, request: pb.WatchAlertsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.WatchAlertsResponse, None]:
        async with aclosing(self._alerts.watch(request)) as events:
            async for event in events:
                yield event

    async def GetAlert(  # noqa: N802
        self, request: pb.GetAlertRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetAlertResponse:
        return await self._alerts.get(request)

    async def ListAlerts(  # noqa: N802
        self, request: pb.ListAlertsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListAlertsResponse:
        return await self._alerts.list(request)

    async def DecideAlert(  # noqa: N802
        self, request: pb.DecideAlertRequest, context: grpc.aio.ServicerContext
    ) -> pb.DecideAlertResponse:
        return await self._alerts.decide(request)

    async def DeleteAlerts(  # noqa: N802
        self, request: pb.DeleteAlertsRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteAlertsResponse:
        return await self._alerts.delete(request)

    async def _updated(self, request: pb.UpdateMonitorRequest) -> StoredMonitor:
        tenant, monitor = self._tenant(), self._id(request.monitor.name)
        chooses_anew = not {"watch", "paused"}.isdisjoint(monitor_definitions.replaced(request))
        etag = request.monitor.etag
        tries = _TRIES
        while True:
            stored = await self._registry.get(tenant, monitor)
            await self._fits.check_made(stored)
            definition = await monitor_definitions.updated(
                stored, request, self._world(), self._sources.of(tenant)
            )
            try:
                async with self._choosing:
                    if chooses_anew:
                        await self._check_one_more(tenant, monitor, definition)
                    changed = await self._registry.replace(
                        tenant, monitor, etag or stored.etag, lambda _, made=definition: made
                    )
                    await self._changed()
                    return changed
            except ActserveError as error:
                # Somebody else was quicker. Unless the caller asks for that state, all is looked
                # at again as it is now.
                tries -= 1
                if error.reason is not Reason.ETAG_MISMATCH or etag or not tries:
                    raise

    async def _check_one_more(self, tenant: str, monitor: str, definition: Definition) -> None:
        """Raises STORE_QUOTA_EXCEEDED where it would be one too many for some call."""
        wire, live = pb.Monitor.FromString(definition.message), self._parts.live
        if choosing_monitors.is_choosing(wire):
            await live.refresh()
            choosing_monitors.check_one_more(await live.of(tenant), monitor, wire.watch)

    async def _changed(self) -> None:
        """What is stored has changed, and this server is to watch by that from now on."""
        # It was stored, and is followed once the database can be reached again.
        with suppress(ActserveError):
            await self._parts.live.refresh()

    def _world(self) -> World:
        return World(info=self._engine.info, nlas=self._nlas, webhooks=self._parts.webhooks)

    def _tenant(self) -> str:
        return current_call().principal.tenant

    def _id(self, name: str) -> str:
        return monitor_names.monitor(name, self._engine.info, ("name",))

    def _to_wire(self, stored: StoredMonitor) -> pb.Monitor:
        return monitor_descriptions.to_wire(stored, self._engine.info)


@contextmanager
def _of_monitor() -> Iterator[None]:
    """Makes errors about a name or an etag say that they are the monitor's."""
    try:
        yield
    except ActserveError as error:
        if error.field in (("name",), ("etag",)):
            error.field = ("monitor", *error.field)
        raise
