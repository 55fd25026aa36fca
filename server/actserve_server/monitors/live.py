"""The monitors that watch calls: a copy of what is stored, ready to be used, of every tenant.

A call pays a look-up. The copy follows what is stored: at once where this server changes it, and
what other replicas change within `POLL_S`, by a number that changes with it. How large it is, the
quotas bound.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import structlog

from actserve_server import logs
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.monitor_registry import Key, MonitorRegistry
from actserve_server.monitors.stored_monitors import StoredMonitor

T = TypeVar("T")

POLL_S = 1.0
"""How late this server may be about what other replicas have changed."""
_AT_ONCE = 64
"""Monitors that are read from the database at a time."""

log = structlog.get_logger("actserve.monitors")


@dataclass(frozen=True, slots=True, eq=False)
class LiveMonitor(Generic[T]):
    """A stored monitor, ready to watch."""

    stored: StoredMonitor
    ready: T | None
    """What the server makes of it; None while it has no probe yet, or was made for another
    checkpoint."""
    error: ActserveError | None = None
    """Why it cannot watch here, if it should: calls that it watches fail with it (`again`)."""


class LiveMonitors(Generic[T]):
    """Of one model. `prepare` makes of a monitor what calls are watched by, in a thread."""

    def __init__(
        self,
        registry: MonitorRegistry,
        model_path: Callable[[], str],
        prepare: Callable[[StoredMonitor], T],
    ) -> None:
        self._registry = registry
        self._model_path = model_path
        self._prepare = prepare
        self._version: int | None = None
        """Of what was read last; None before anything was read."""
        self._all: Mapping[Key, LiveMonitor[T]] = {}
        self._by_tenant: Mapping[str, Mapping[str, LiveMonitor[T]]] = {}
        self._refreshing = asyncio.Lock()

    async def of(self, tenant: str) -> Mapping[str, LiveMonitor[T]]:
        """The monitors of a tenant, by id. Raises STORE_UNREACHABLE if what is stored was never
        read: a call that should be watched must not go on unwatched."""
        if self._version is None:
            await self.refresh()
        return self._by_tenant.get(tenant, {})

    async def find(self, tenant: str, monitor: str) -> LiveMonitor[T] | None:
        """A monitor that a call names, also if another replica has made it just now. Raises
        STORE_UNREACHABLE."""
        found = (await self.of(tenant)).get(monitor)
        if found is None:
            await self.refresh()
            found = self._by_tenant.get(tenant, {}).get(monitor)
        return found

    async def follow(self) -> None:
        """Follows what is stored, until it is cancelled."""
        while True:
            try:
                await self.refresh()
            except ActserveError as error:
                # The database has said so; what was read last stays.
                if error.reason is not Reason.STORE_UNREACHABLE:
                    log.error("monitors", **logs.described(error))
            except Exception as error:
                log.error("monitors", **logs.described(error))
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Reads what has changed. Raises STORE_UNREACHABLE."""
        async with self._refreshing:
            version = await self._registry.version()
            if version == self._version:
                return
            etags = await self._registry.etags()
            all_of = {
                key: live for key, live in self._all.items() if etags.get(key) == live.stored.etag
            }
            new = iter([key for key in etags if key not in all_of])
            while some := list(islice(new, _AT_ONCE)):
                for stored in await self._registry.load(some):
                    all_of[stored.tenant, stored.id] = await off_loop(self._live, stored)
            by_tenant: dict[str, dict[str, LiveMonitor[T]]] = {}
            for (tenant, monitor), live in sorted(all_of.items(), key=lambda item: item[0]):
                by_tenant.setdefault(tenant, {})[monitor] = live
            self._all, self._by_tenant, self._version = all_of, by_tenant, version

    def _live(self, stored: StoredMonitor) -> LiveMonitor[T]:
        if not stored.definition.resolved or stored.model_path != self._model_path():
            return LiveMonitor(stored, None)
        try:
            return LiveMonitor(stored, self._prepare(stored))
        except ActserveError as error:
            return LiveMonitor(stored, None, error.again())
        except Exception as error:
            # Those of everybody else are followed all the same.
            name = self._registry.name(stored.id)
            log.error("monitor", name=name, **logs.described(error))
            why = f"{name} is stored, but cannot be read; delete it, and create it anew"
            return LiveMonitor(stored, None, ActserveError(Reason.INTERNAL, why))
