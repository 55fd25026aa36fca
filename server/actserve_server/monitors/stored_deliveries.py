"""Which alerts are still to be delivered, as the database has it for all replicas.

Whoever claims a delivery puts off when it is due, which is its lease, and leaves a mark by which
what came of it is written down only if nobody else has claimed it since.
"""

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.alert_store import AlertStore
from actserve_server.monitors.stored_alerts import Action, DeliveryState, StoredAlert
from actserve_server.monitors.watched import Decision
from actserve_server.monitors.webhooks import Delivery, Sending
from actserve_server.storage.database import Database
from actserve_server.storage.tables import alerts


@dataclass(frozen=True, slots=True, eq=False)
class _Due:
    """What is due and has a place."""

    of: Sequence[sa.ColumnElement[bool]]
    """Of each account whose turn it is."""
    places: int


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
        self,
        places: Mapping[str, int],
        others: int,
        lease_s: float,
        under_way: Mapping[Sending, int],
    ) -> Sequence[Delivery]:
        now = self._store.now_us()
        # Looked for before it is claimed: most of the time there is none, and whoever writes holds
        # up all who want to.
        found = await self._database.read(
            lambda connection: self._find(connection, now, places, others, under_way)
        )
        if not found:
            return ()
        lease, due_us = secrets.token_hex(8), now + round(lease_s * 1e6)

        def take(connection: sa.Connection) -> "list[sa.Row[Any]]":
            rows = [row for each in found for row in self._in_turn(connection, each, under_way)]
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

    def _find(
        self,
        connection: sa.Connection,
        now: int,
        places: Mapping[str, int],
        others: int,
        under_way: Mapping[Sending, int],
    ) -> list[_Due]:
        """What is due where there is a place."""
        due = sa.and_(self._waiting(), alerts.c.delivery_due_us <= now)
        first = sa.select(alerts.c.id).where(due).limit(1)
        found: list[_Due] = []
        for url, free in places.items():
            at = alerts.c.webhook == url
            if free <= 0 or connection.execute(first.where(at)).first() is None:
                continue
            since = {
                whose: due_us for whose, due_us in self._accounts(connection, url) if due_us <= now
            }
            turns = sorted(since, key=lambda each: (under_way.get((url, each), 0), since[each]))
            of = [sa.and_(due, at, alerts.c.account == each) for each in turns[:free]]
            found.append(_Due(of, free))
        # Of those that go nowhere nobody has to wait for a turn.
        between = [sa.and_(due, each) for each in _between(places)]
        found += [
            _Due([each], others)
            for each in between
            if connection.execute(first.where(each)).first() is not None
        ]
        return found

    def _accounts(self, connection: sa.Connection, url: str) -> Iterator[tuple[str, int]]:
        """Who has deliveries to an address that are not over, and when the first one is due. From
        one account to the next, since one may have very many."""
        here = sa.select(alerts.c.account, alerts.c.delivery_due_us).where(
            self._waiting(), alerts.c.webhook == url
        )
        here = here.order_by(alerts.c.account, alerts.c.delivery_due_us).limit(1)
        row = connection.execute(here).first()
        while row is not None:
            yield row.account, row.delivery_due_us
            row = connection.execute(here.where(alerts.c.account > row.account)).first()

    def _in_turn(
        self, connection: sa.Connection, due: _Due, under_way: Mapping[Sending, int]
    ) -> Iterator["sa.Row[Any]"]:
        """As many as there are places, of whoever has fewest under way, and then those first that
        are due longest."""
        oldest = sa.select(alerts).order_by(alerts.c.delivery_due_us).limit(due.places)
        queues = [[*connection.execute(oldest.where(each)).all()] for each in due.of]
        taken = Counter(under_way)
        for _ in range(due.places):
            queues = [each for each in queues if each]
            if not queues:
                return
            queue = min(
                queues,
                key=lambda rows: (taken[rows[0].webhook, rows[0].account], rows[0].delivery_due_us),
            )
            row = queue.pop(0)
            taken[row.webhook, row.account] += 1
            yield row

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
