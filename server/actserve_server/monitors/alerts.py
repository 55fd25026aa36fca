"""Raises alerts, and waits for what is decided about them.

An alert is raised once it is stored: those of all calls that come together are written in one
transaction, so that many take no longer than one. What cannot be stored is not raised, and the call
that is watched fails with it.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors import followups
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.alert_streams import AlertStreams
from actserve_server.monitors.stored_alerts import NewAlert, StoredAlert
from actserve_server.monitors.watched import Crossing, Decision, Pause, WatchedCall

MAX_WAITING = 10_000
"""Alerts that wait to be stored: what calls hold in memory."""
AT_ONCE = 500
"""Alerts that are stored in one transaction, for which others wait."""
POLL_S = 0.25
"""How late this server may be about what another replica was told of a paused sample."""
RETRY_AFTER_S = 1.0

Listener = Callable[[Sequence[NewAlert]], None]
"""Is told of alerts once they are stored. Returns at once."""


class StoredAlerts:
    """Where the alerts of this server go."""

    def __init__(
        self, store: AlertStore, streams: AlertStreams, listeners: Sequence[Listener] = ()
    ) -> None:
        self._store = store
        self._streams = streams
        self._listeners = [*listeners]
        self._waiting: list[tuple[NewAlert, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._paused: dict[str, asyncio.Future[Decision]] = {}
        """What waits for a decision, by the alert's id."""
        self._poller: asyncio.Task[None] | None = None
        self._lapsing: set[asyncio.Task[None]] = set()

    def listen(self, listener: Listener) -> None:
        """Tells one more of what is stored from now on."""
        self._listeners.append(listener)

    async def raised(self, call: WatchedCall, crossing: Crossing) -> str:
        """Stores an alert, and returns its id once it is on the disk.

        Raises STORE_UNREACHABLE, or QUEUE_FULL if too many wait to be stored. If this is cancelled
        it is stored all the same.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{MAX_WAITING} alerts wait to be stored; try again in {RETRY_AFTER_S:g} s",
                metadata={"limit": MAX_WAITING},
                retry_after_s=RETRY_AFTER_S,
            )
        new = NewAlert(
            id=secrets.token_hex(12),
            call=call,
            crossing=crossing,
            raised_at_us=self._store.now_us(),
        )
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append((new, stored))
        if self._writer is None or self._writer.done():
            # Of no caller: it writes for all.
            self._writer = asyncio.create_task(self._write(), context=Context())
        await stored
        followups.trace(new.id, crossing)
        return new.id

    async def decision(self, call: WatchedCall, alert: str, pause: Pause) -> Decision:
        """What is decided about the sample of an alert that was raised just now, by whomever, or
        by itself once its time is over. The first decision holds.

        Raises STORE_UNREACHABLE if it cannot be told, and RESOURCE_NOT_FOUND if the alert is
        gone.
        """
        decided = self._paused[alert] = asyncio.get_running_loop().create_future()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), context=Context())
        try:
            async with asyncio.timeout(pause.time_limit_s):
                return await decided
        except TimeoutError:
            own = Decision.PROCEED if pause.proceed_after else Decision.STOP
            return await self._decide_itself(call.tenant, alert, own)
        finally:
            self._paused.pop(alert, None)

    def lapsed(self, call: WatchedCall, alert: Awaitable[str]) -> None:
        """Nobody waits any more for what is decided about an alert, whose id is known once it is
        stored. Returns at once; where it cannot be written down, it shows when its time is over."""
        lapsing = asyncio.create_task(self._lapse(call.tenant, alert), context=Context())
        self._lapsing.add(lapsing)
        lapsing.add_done_callback(self._lapsing.discard)

    async def decide(self, tenant: str, alert: str, decision: Decision) -> StoredAlert:
        """Decides about a sample that is paused on any replica. Raises as `AlertStore.decide`."""
        stored = await self._store.decide(tenant, alert, decision)
        self._tell(alert, decision)
        return stored

    async def close(self) -> None:
        """Stores what waits to be stored; waits for nothing else."""
        if self._poller is not None:
            self._poller.cancel()
        tasks = [each for each in (self._writer, self._poller) if each is not None]
        tasks += self._lapsing
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            new = [each for each, _ in batch]
            try:
                await self._store.add(new)
            except BaseException as error:
                for _, stored in batch:
                    if not stored.done():
                        stored.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for _, stored in batch:
                if not stored.done():
                    stored.set_result(None)
            self._streams.wake({each.call.tenant for each in new})
            for listener in self._listeners:
                listener(new)

    async def _lapse(self, tenant: str, alert: Awaitable[str]) -> None:
        with suppress(ActserveError):
            await self._store.lapse(tenant, await alert)

    async def _decide_itself(self, tenant: str, alert: str, own: Decision) -> Decision:
        try:
            await self._store.decide(tenant, alert, own)
        except ActserveError as error:
            if error.reason is not Reason.ALERT_DECIDED:
                raise
            # Somebody was quicker.
            stored = await self._store.get(tenant, alert)
            if stored.decision is None:
                raise
            return stored.decision
        return own

    async def _poll(self) -> None:
        """Looks what other replicas were told, for as long as anything is paused."""
        while self._paused:
            with suppress(ActserveError):  # The database has said that it cannot be reached.
                for alert, decision in (await self._store.decisions(list(self._paused))).items():
                    self._tell(alert, decision)
            await asyncio.sleep(POLL_S)

    def _tell(self, alert: str, decision: Decision) -> None:
        decided = self._paused.get(alert)
        if decided is not None and not decided.done():
            decided.set_result(decision)
