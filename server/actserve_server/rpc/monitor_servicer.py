"""MonitorService: translates, nothing else."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial

import grpc

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import monitor_service_pb2_grpc, work_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors.registry import ID, not_found
from actserve_server.monitors.stored_monitors import NewMonitor, StoredMonitor
from actserve_server.rpc.alert_calls import AlertCalls
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.monitor_fits import MonitorFit
from actserve_server.rpc.requests import (
    monitor_definitions,
    monitor_fields,
    monitor_names,
    pages,
    steering_vector_fields,
)
from actserve_server.rpc.requests.fit_fields import fit_request
from actserve_server.rpc.requests.monitor_definitions import World
from actserve_server.rpc.requests.replayed_items import Replayed, ReplayedItems
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.resource_names import monitor_id
from actserve_server.rpc.responses import (
    chunks,
    fit_messages,
    model_descriptions,
    monitor_descriptions,
)
from actserve_server.rpc.responses.endings import usage
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts

MAX_REPLAYED = 8
"""Monitors that one replay scores by."""
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
            stored = await self._registry.store(tenant, new, making)
            await self._changed()
        return pb.CreateMonitorResponse(monitor=self._to_wire(stored))

    async def GetMonitor(  # noqa: N802
        self, request: pb.GetMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMonitorResponse:
        stored = await self._registry.get(self._tenant(), self._id(request.name))
        return pb.GetMonitorResponse(monitor=(await self._told([stored]))[0])

    async def ListMonitors(  # noqa: N802
        self, request: pb.ListMonitorsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListMonitorsResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        if after and not ID.fullmatch(after):
            raise pages.not_ours()
        found = await self._registry.list(self._tenant(), after, size + 1)
        page = list(chunks.fitting(await self._told(found[:size])))
        more = found[len(page) - 1].id if len(found) > len(page) else ""
        return pb.ListMonitorsResponse(monitors=page, next_page_token=pages.token(more))

    async def UpdateMonitor(  # noqa: N802
        self, request: pb.UpdateMonitorRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateMonitorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "changing monitors")
        with _of_monitor():
            stored = await self._updated(request)
        await self._changed()
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
        call, fits = current_call(), self._parts.fits
        call.principal.require(Role.EXPERIMENTER, "fitting monitors")
        info, tenant = self._engine.info, self._tenant()
        model_descriptions.check_model(request.model, info, ("model",))
        chosen = monitor_fields.new_id(request.monitor_id)
        steering_vector_fields.labels(request.labels)
        making = await making_request(request)
        stored = await self._registry.made(tenant, making)
        if stored is None:
            fits.check_room(tenant)
            asked = await fit_request(request, self._engine, tenant, fits.max_own_bytes(tenant))
            fit = MonitorFit(
                request, asked, self._engine, self._world(), self._sources.of(tenant), call
            )
            new = NewMonitor(id=chosen, definition=fit.begun, model_path=info.path)
            stored = await self._registry.store(tenant, new, making)
            await fits.begin(stored, asked.steps, asked.held_bytes, fit)
        return pb.FitMonitorResponse(monitor=(await self._told([stored]))[0])

    async def ReplayMonitors(  # noqa: N802
        self, request: pb.ReplayMonitorsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ReplayMonitorsResponse, None]:
        call, info = current_call(), self._engine.info
        _check_replay(request, info)
        if any(item.interventions for item in request.items):
            call.principal.require(Role.EXPERIMENTER, "changing activations")
        monitors = [
            await self._replayed(name, ("monitors", index))
            for index, name in enumerate(request.monitors)
        ]
        own = self._sources.of(self._tenant())
        items = ReplayedItems(request, monitors, self._engine, own, self._nlas, call)
        admitted = self._engine.enter(self._tenant(), checked=info)
        yield pb.ReplayMonitorsResponse(started=pb.ReplayStarted(call_id=call.id))
        parts = [partial(items.serve, index, admitted) for index in range(len(request.items))]
        async with aclosing(admitted.merge(parts)) as events:
            async for _, event in events:
                yield event
        yield pb.ReplayMonitorsResponse(finished=pb.ReplayFinished(usage=usage(call)))

    async def GetMonitorScores(  # noqa: N802
        self, request: pb.GetMonitorScoresRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMonitorScoresResponse:
        stored = await self._registry.get(self._tenant(), self._id(request.name))
        scores = self._parts.scores
        hours = await scores.of(stored)
        return monitor_descriptions.scores(stored, hours, scores.drift(hours, stored.etag))

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
        monitor_definitions.replaced(request)
        etag = request.monitor.etag
        tries = _TRIES
        while True:
            stored = await self._registry.get(tenant, monitor)
            await self._check_made(stored)
            definition = await monitor_definitions.updated(
                stored, request, self._world(), self._sources.of(tenant)
            )
            try:
                return await self._registry.replace(
                    tenant, monitor, etag or stored.etag, lambda _, made=definition: made
                )
            except ActserveError as error:
                # Somebody else was quicker. Unless the caller asks for that state, all is looked
                # at again as it is now.
                tries -= 1
                if error.reason is not Reason.ETAG_MISMATCH or etag or not tries:
                    raise

    async def _replayed(self, name: str, field: FieldPath) -> Replayed:
        """The monitor of that name, paused or not."""
        monitor = monitor_names.monitor(name, self._engine.info, field)
        live = await self._parts.live.find(self._tenant(), monitor)
        if live is None or live.ready is None:  # It may have been fitted just now.
            await self._parts.live.refresh()
            live = await self._parts.live.find(self._tenant(), monitor)
        if live is None:
            raise not_found(name, field)
        if live.ready is None:
            if live.error is not None:
                raise live.error
            await self._check_made(live.stored, field)
            raise _of_another_model(self._registry.name(monitor), field)
        return Replayed(self._registry.name(monitor), live.stored.etag, live.ready)

    async def _changed(self) -> None:
        """What is stored has changed, and this server is to watch by that from now on."""
        # It was stored, and is followed once the database can be reached again.
        with suppress(ActserveError):
            await self._parts.live.refresh()

    async def _check_made(self, stored: StoredMonitor, field: FieldPath = ()) -> None:
        """Raises RESOURCE_NOT_READY while a monitor has no probe yet."""
        if stored.definition.resolved:
            return
        state = (await self._told([stored]))[0].fit.work.state
        raise ActserveError(
            Reason.RESOURCE_NOT_READY,
            f"the monitor {stored.id!r} has no probe yet, since it is still being fitted, or could "
            "not be; wait until its fit is done, or make another",
            field=field,
            metadata={
                "resource_name": self._registry.name(stored.id),
                "state": work_pb2.WorkState.Name(state),
            },
        )

    async def _told(self, every: Sequence[StoredMonitor]) -> Sequence[pb.Monitor]:
        """Monitors for the wire, with how far those have come that are being made."""
        told = [self._to_wire(stored) for stored in every]
        made = [
            stored
            for stored, wire in zip(every, told, strict=True)
            if wire.HasField("fit") and not fit_messages.is_over(wire.fit)
        ]
        if made:
            known = await self._parts.fits.progress(self._tenant(), made)
            for stored, wire in zip(every, told, strict=True):
                if stored.id in known:
                    fit_messages.tell(wire.fit, known[stored.id], current_call())
        return told

    def _world(self) -> World:
        return World(info=self._engine.info, nlas=self._nlas, webhooks=self._parts.webhooks)

    def _tenant(self) -> str:
        return current_call().principal.tenant

    def _id(self, name: str) -> str:
        return monitor_names.monitor(name, self._engine.info, ("name",))

    def _to_wire(self, stored: StoredMonitor) -> pb.Monitor:
        return monitor_descriptions.to_wire(stored, self._engine.info)


def _of_another_model(name: str, field: FieldPath) -> ActserveError:
    return ActserveError(
        Reason.RESOURCE_NOT_READY,
        "the monitor was stored for another checkpoint of the model than is served; make it again",
        field=field,
        metadata={"resource_name": name},
    )


def _check_replay(request: pb.ReplayMonitorsRequest, info: ModelInfo) -> None:
    names = request.monitors
    if not 1 <= len(names) <= MAX_REPLAYED:
        raise ActserveError(
            Reason.FIELD_INVALID if names else Reason.FIELD_REQUIRED,
            f"{len(names)} monitors are named; name from 1 to {MAX_REPLAYED}",
            field=("monitors",),
            metadata={"monitors": len(names), "limit": MAX_REPLAYED} if names else None,
        )
    for index, name in enumerate(names):
        earlier = [monitor_id(each, info) for each in names[:index]]
        if (this := monitor_id(name, info)) is not None and this in earlier:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the monitor {this!r} is named twice, as {earlier.index(this)} and {index}; name "
                "it once",
                field=("monitors", index),
            )
    count, limit = len(request.items), info.limits.max_items
    if not count:
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


@contextmanager
def _of_monitor() -> Iterator[None]:
    """Makes errors about a name or an etag say that they are the monitor's."""
    try:
        yield
    except ActserveError as error:
        if error.field in (("name",), ("etag",)):
            error.field = ("monitor", *error.field)
        raise
