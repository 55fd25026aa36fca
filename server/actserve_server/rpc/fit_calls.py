"""The calls of MonitorService about monitors that are made of examples."""

from collections.abc import Callable, Mapping, Sequence

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import work_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.stored_monitors import NewMonitor, StoredMonitor
from actserve_server.rpc.monitor_fits import MonitorFit
from actserve_server.rpc.requests import monitor_fields, steering_vector_fields
from actserve_server.rpc.requests.fit_fields import fit_request
from actserve_server.rpc.requests.monitor_definitions import World
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.responses import fit_messages, model_descriptions, monitor_descriptions
from actserve_server.rpc.transport.calls import current_call
from actserve_server.rpc.watching_parts import WatchingParts


class FitCalls:
    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        parts: WatchingParts,
        world: Callable[[], World],
    ) -> None:
        self._engine = engine
        self._sources = sources
        self._registry = parts.registry
        self._fits = parts.fits
        self._world = world

    async def fit(self, request: pb.FitMonitorRequest) -> pb.FitMonitorResponse:
        call, fits = current_call(), self._fits
        call.principal.require(Role.EXPERIMENTER, "fitting monitors")
        info, tenant = self._engine.info, call.principal.tenant
        model_descriptions.check_model(request.model, info, ("model",))
        chosen = monitor_fields.new_id(request.monitor_id)
        steering_vector_fields.labels(request.labels)
        making = await making_request(request)
        stored = await self._registry.made(tenant, making)
        if stored is None:
            fits.check_room(tenant)
            asked = await fit_request(request, self._engine, tenant, fits.max_own_bytes(tenant))
            own = self._sources.of(tenant)
            fit = MonitorFit(request, asked, self._engine, self._world(), own, call)
            new = NewMonitor(id=chosen, definition=fit.begun, model_path=info.path)
            with fits.place(tenant, asked.text_bytes):
                stored = await self._registry.store(tenant, new, making)
                await fits.begin(stored, asked.steps, asked.held_bytes, asked.text_bytes, fit)
        (monitor,) = await self.told([stored])
        return pb.FitMonitorResponse(monitor=monitor)

    async def told(self, every: Sequence[StoredMonitor]) -> Sequence[pb.Monitor]:
        """Monitors for the wire, with how far those have come that are being made."""
        # In a thread: a page may have a thousand, with the reports of their fits.
        told = await off_loop(monitor_descriptions.all_to_wire, every, self._engine.info)
        made = [
            stored
            for stored, wire in zip(every, told, strict=True)
            if wire.HasField("fit") and not fit_messages.is_over(wire.fit)
        ]
        if made:
            call = current_call()
            known = await self._fits.progress(call.principal.tenant, made)
            newer = await self._newer([each for each in made if known[each.id] is None])
            for stored, wire in zip(every, told, strict=True):
                if stored.id in newer:
                    wire.CopyFrom(newer[stored.id])
                elif stored.id in known:
                    fit_messages.tell(wire.fit, known[stored.id], call)
        return told

    async def _newer(self, unknown: Sequence[StoredMonitor]) -> Mapping[str, pb.Monitor]:
        """By id those of which nobody knows the work because it has ended since they were read:
        then they have another etag, and say themselves how it ended."""
        tenant = current_call().principal.tenant
        etags = {each.id: each.etag for each in unknown}
        now = await self._registry.load([(tenant, monitor) for monitor in etags]) if etags else ()
        changed = [each for each in now if each.etag != etags[each.id]]
        told = await self.told(changed)
        return {stored.id: wire for stored, wire in zip(changed, told, strict=True)}

    async def check_made(self, stored: StoredMonitor, field: FieldPath = ()) -> None:
        """Raises RESOURCE_NOT_READY while a monitor has no probe yet."""
        if stored.definition.resolved:
            return
        (told,) = await self.told([stored])
        raise ActserveError(
            Reason.RESOURCE_NOT_READY,
            f"the monitor {stored.id!r} has no probe yet, since it is still being fitted, or could "
            "not be; wait until its fit is done, or make another",
            field=field,
            metadata={
                "resource_name": self._registry.name(stored.id),
                "state": work_pb2.WorkState.Name(told.fit.work.state),
            },
        )
