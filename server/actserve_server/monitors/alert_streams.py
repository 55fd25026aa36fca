"""Alerts as they are raised, on whatever replica, for those who watch.

Each reader reads pages from the database at its own pace, and holds up nobody. What wakes those who
have read all is one look at the database for all tenants that are watched here, and what this
server stores itself.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from contextvars import Context

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.stored_alerts import AlertFilter, LostAlerts, StoredAlert

POLL_S = 0.5
"""How late an alert of another replica may be."""
RETRY_AFTER_S = 1.0
PAGE = 200
"""Alerts that each reader has in memory."""


class AlertStreams:
    """The streams of one server."""

    def __init__(self, store: AlertStore, poll_s: float = POLL_S) -> None:
        self._store = store
        self._poll_s = poll_s
        self._tenants: dict[str, _Waiting] = {}
        """Of each tenant that is watched here."""
        self._poller: asyncio.Task[None] | None = None
        self._draining = False

    async def watch(
        self, tenant: str, place: int, wanted: AlertFilter
    ) -> AsyncGenerator[StoredAlert | LostAlerts, None]:
        """What comes after a place, for ever. Raises STORE_UNREACHABLE, and DRAINING once the
        server is about to end."""
        waiting = self._enter(tenant)
        try:
            while True:
                news = waiting.news
                page = await self._store.page(tenant, place, wanted, PAGE)
                for event in page.events:
                    yield event
                place = page.end
                if self._draining:
                    raise ActserveError(
                        Reason.DRAINING,
                        "the server is shutting down; go on elsewhere from the last alert",
                        retry_after_s=RETRY_AFTER_S,
                    )
                if not page.has_more:
                    await news.wait()
        finally:
            self._leave(tenant, waiting)

    def wake(self, tenants: Iterable[str]) -> None:
        """There is something new of these tenants."""
        for tenant in tenants:
            if tenant in self._tenants:
                self._tenants[tenant].wake()

    def drain(self) -> None:
        """Ends every stream, once it has told what is there."""
        self._draining = True
        self.wake(list(self._tenants))

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
            self._poller = None

    def _enter(self, tenant: str) -> "_Waiting":
        waiting = self._tenants.setdefault(tenant, _Waiting())
        waiting.readers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), context=Context())
        return waiting

    def _leave(self, tenant: str, waiting: "_Waiting") -> None:
        waiting.readers -= 1
        if not waiting.readers:
            self._tenants.pop(tenant, None)

    async def _poll(self) -> None:
        """Looks for news for as long as anybody watches."""
        while self._tenants:
            with suppress(ActserveError):  # The database has said that it cannot be reached.
                for tenant, last in (await self._store.lasts(list(self._tenants))).items():
                    waiting = self._tenants.get(tenant)
                    if waiting is not None and last != waiting.last:
                        waiting.last = last
                        waiting.wake()
            await asyncio.sleep(self._poll_s)


class _Waiting:
    """Readers of a tenant."""

    def __init__(self) -> None:
        self.readers = 0
        self.last: int | None = None
        """The newest place that they were woken for."""
        self.news = asyncio.Event()

    def wake(self) -> None:
        """Wakes those who wait; who comes from now on waits for the next time."""
        news, self.news = self.news, asyncio.Event()
        news.set()
