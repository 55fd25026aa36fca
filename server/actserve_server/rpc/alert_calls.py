"""The calls of MonitorService about alerts."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from actserve.v1 import alert_pb2
from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.monitors import alert_tokens, measures
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.alert_streams import AlertStreams
from actserve_server.monitors.alerts import StoredAlerts
from actserve_server.monitors.stored_alerts import LostAlerts, StoredAlert
from actserve_server.rpc.requests import alert_fields, monitor_names, pages
from actserve_server.rpc.responses import alert_messages, chunks, model_descriptions
from actserve_server.rpc.transport.calls import current_call


class AlertCalls:
    def __init__(
        self,
        engine: AdmittedEngine,
        store: AlertStore,
        streams: AlertStreams,
        alerts: StoredAlerts,
    ) -> None:
        self._engine = engine
        self._store = store
        self._streams = streams
        self._alerts = alerts

    async def watch(
        self, request: pb.WatchAlertsRequest
    ) -> AsyncGenerator[pb.WatchAlertsResponse, None]:
        info, tenant, call = self._engine.info, self._tenant(), current_call()
        model_descriptions.check_model(request.model, info, ("model",))
        wanted = alert_fields.stream_filter(request.filter, info)
        place = await self._place(request, tenant)
        yield pb.WatchAlertsResponse(
            started=pb.AlertsStarted(
                call_id=call.id,
                resume_token=alert_tokens.write(tenant, info.id, place),
            )
        )
        with measures.alert_watcher():
            async with aclosing(self._streams.watch(tenant, place, wanted)) as events:
                async for event in events:
                    # Else a token that was withdrawn, or has expired, would be told for ever.
                    if call.check_known is not None:
                        await call.check_known()
                    if isinstance(event, LostAlerts):
                        yield pb.WatchAlertsResponse(lost=pb.AlertsLost(alerts=event.count))
                    else:
                        yield pb.WatchAlertsResponse(alert=self._to_wire(event))

    async def get(self, request: pb.GetAlertRequest) -> pb.GetAlertResponse:
        stored = await self._store.get(self._tenant(), self._id(request.name))
        return pb.GetAlertResponse(alert=self._to_wire(stored))

    async def list(self, request: pb.ListAlertsRequest) -> pb.ListAlertsResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        size = pages.size(request.page_size)
        before = alert_fields.before_place(request.page_token)
        wanted = alert_fields.alert_filter(request.filter, self._engine.info)
        found = await self._store.list(self._tenant(), before, size + 1, wanted)
        page = list(chunks.fitting(map(self._to_wire, found[:size])))
        more = str(found[len(page) - 1].sequence) if len(found) > len(page) else ""
        return pb.ListAlertsResponse(alerts=page, next_page_token=pages.token(more))

    async def decide(self, request: pb.DecideAlertRequest) -> pb.DecideAlertResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deciding about alerts")
        alert = self._id(request.name)
        decision = alert_fields.decision(request.decision)
        stored = await self._alerts.decide(self._tenant(), alert, decision)
        return pb.DecideAlertResponse(alert=self._to_wire(stored))

    async def delete(self, request: pb.DeleteAlertsRequest) -> pb.DeleteAlertsResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deleting alerts")
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        wanted = alert_fields.alert_filter(request.filter, self._engine.info)
        return pb.DeleteAlertsResponse(alerts=await self._store.delete(self._tenant(), wanted))

    async def _place(self, request: pb.WatchAlertsRequest, tenant: str) -> int:
        """Where a stream begins."""
        if not request.resume_token:
            return await self._store.start(tenant, oldest=request.from_oldest)
        if request.from_oldest:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "from_oldest stands in place of a token; send one of the two",
                field=("from_oldest",),
            )
        place = alert_tokens.read(request.resume_token, tenant, self._engine.info.id)
        await self._store.check(tenant, place)
        return place

    def _tenant(self) -> str:
        return current_call().principal.tenant

    def _id(self, name: str) -> str:
        return monitor_names.alert(name, self._engine.info, ("name",))

    def _to_wire(self, stored: StoredAlert) -> alert_pb2.Alert:
        return alert_messages.to_wire(stored, self._tenant(), self._engine.info.id)
