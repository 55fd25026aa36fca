"""Which alerts are still to be delivered, as the database has it for all replicas.

Whoever claims a delivery puts off when it is due, which is its lease, and leaves a mark by which
what came of it is written down only if nobody else has claimed it since.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.stored_alerts import Action, DeliveryState, StoredAlert
from actserve_server.monitors.watched import Decision
from actserve_server.monitors.webhooks import Delivery
from actserve_server.storage.database import Database
from actserve_server.storage.tables import alerts


class StoredDeliveries:
    """What `Deliveries` promises, of the alerts of one model."""

    def __init__(
        self,
        database: Database,
        model_id: str,
        store: AlertStore,
        decide: Callable[[str, str, Decision], Awaitable[object]],
        to_json: Callable[[StoredAlert, str], bytes],
    ) -> None:
        """`decide` is as `AlertStore.decide`; `to_json` makes the body of a delivery, of an alert
        and its tenant."""
        self._database = database
        self._model_id = model_id
        self._store = store
        self._decide = decide
        self._to_json = to_json

    async def claim(
        self, places: Mapping[str, int], others: int, lease_s: float
    ) -> Sequence[Delivery]:
        now = self._store.now_us()
        due = sa.and_(self._waiting(), alerts.c.delivery_due_us <= now)
        which = [(alerts.c.webhook == url, free) for url, free in places.items() if free > 0]
        which += [(between, others) for between in _between(places)]
        queries = [
            sa.select(alerts).where(due, of).order_by(alerts.c.delivery_due_us).limit(count)
            for of, count in which
        ]
        # Looked for before it is claimed: most of the time there is none, and whoever writes holds
        # up all who want to.
        found = await self._database.read(
            lambda connection: [query for query in queries if connection.execute(query).first()]
        )
        if not found:
            return ()
        lease, due_us = secrets.token_hex(8), now + round(lease_s * 1e6)

        def take(connection: sa.Connection) -> "list[sa.Row[Any]]":
            rows = [row for query in found for row in connection.execute(query).all()]
            for row in rows:
                connection.execute(
                    alerts.update()
                    .where(*self._is(row.tenant, row.id))
                    .values(
                        delivery_due_us=due_us,
                        delivery_lease=lease,
                        delivery_attempts=row.delivery_attempts + 1,
                    )
                )
            return rows

        taken = await self._database.write(take)
        made = [await self._delivery(row, lease) for row in taken]
        return [each for each in made if each is not None]

    async def delivered(self, delivery: Delivery) -> None:
        await self._write(delivery, delivery_state=int(DeliveryState.DELIVERED), delivery_error="")

    async def failed(self, delivery: Delivery, error: str, again_after_s: float | None) -> None:
        if again_after_s is None:
            await self._write(
                delivery, delivery_state=int(DeliveryState.DEAD), delivery_error=error
            )
        else:
            due_us = self._store.now_us() + round(again_after_s * 1e6)
            await self._write(delivery, delivery_due_us=due_us, delivery_error=error)

    async def decide(self, delivery: Delivery, decision: Decision) -> None:
        try:
            await self._decide(delivery.tenant, delivery.alert, decision)
        except ActserveError as error:
            if error.reason not in (Reason.ALERT_DECIDED, Reason.RESOURCE_NOT_FOUND):
                raise

    async def waiting(self) -> int:
        query = sa.select(sa.func.count()).select_from(alerts).where(self._waiting())
        return int(await self._database.read(lambda connection: connection.scalar(query)) or 0)

    async def _delivery(self, row: "sa.Row[Any]", lease: str) -> Delivery | None:
        """None for an alert that was deleted since."""
        try:
            alert = await self._store.get(row.tenant, row.id)
        except ActserveError as error:
            if error.reason is Reason.RESOURCE_NOT_FOUND:
                return None
            raise
        return Delivery(
            tenant=row.tenant,
            alert=row.id,
            name=self._store.name(row.id),
            url=row.webhook,
            attempts=row.delivery_attempts + 1,
            lease=lease,
            body=self._to_json(alert, row.tenant),
            awaits_decision=alert.action is Action.PAUSE and alert.decision is None,
        )

    async def _write(self, delivery: Delivery, **values: object) -> None:
        statement = (
            alerts.update()
            .where(*self._is(delivery.tenant, delivery.alert))
            .where(alerts.c.delivery_lease == delivery.lease)
            .values(**values)
        )
        await self._database.write(lambda connection: connection.execute(statement).rowcount)

    def _waiting(self) -> sa.ColumnElement[bool]:
        return sa.and_(
            alerts.c.model_id == self._model_id,
            alerts.c.delivery_state == int(DeliveryState.WAITING),
        )

    def _is(self, tenant: str, alert: str) -> tuple[sa.ColumnElement[bool], ...]:
        return alerts.c.tenant == tenant, alerts.c.model_id == self._model_id, alerts.c.id == alert


def _between(urls: Collection[str]) -> Iterator[sa.ColumnElement[bool]]:
    """Addresses other than these, in ranges: an index finds what is in them, where it would be gone
    through for what is not in a list."""
    for low, high in pairwise(["", *sorted(urls), None]):
        above = alerts.c.webhook > low
        yield above if high is None else sa.and_(above, alerts.c.webhook < high)
