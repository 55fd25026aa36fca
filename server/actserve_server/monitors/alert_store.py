"""The stored alerts of every tenant, in the order in which they were stored.

Whoever writes stands in line, so the numbers of a tenant's alerts are in the order in which they
can be read, without a gap: who has read up to one misses none that comes later. What is gone is a
gap in the numbers. An account has at most its share of the room, and the oldest go.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.monitors.stored_alerts import (
    Action,
    AlertFilter,
    AlertPage,
    DeliveryState,
    LostAlerts,
    NewAlert,
    StoredAlert,
)
from actserve_server.monitors.watched import Decision, Intervene, Level, LevelName, Pause, Stop
from actserve_server.storage.database import Database
from actserve_server.storage.tables import alert_sequences as sequences
from actserve_server.storage.tables import alert_totals as totals
from actserve_server.storage.tables import alerts, alerts_gone

RESOURCE_TYPE = "actserve.v1.Alert"
AT_ONCE = 500
"""Alerts that are read or deleted at a time."""
GONE = 256
"""Monitors of a tenant of which it is known that alerts are gone; of all others it is taken for
granted."""
GRACE_US = 60_000_000
"""How long after its time limit a paused sample may still be waiting. One that is not decided then
never will be: its server has died."""

DECISIONS = {1: Decision.PROCEED, 2: Decision.STOP, 3: Decision.LAPSED}
"""By number, as they are stored; 0 is none."""
NUMBERS = {decision: number for number, decision in DECISIONS.items()}


class AlertStore:
    """The alerts of one model. `clock` tells seconds since 1970. Every method raises
    STORE_UNREACHABLE."""

    def __init__(
        self,
        database: Database,
        model_id: str,
        *,
        max_alerts: int,
        max_seconds: float,
        tenant_share: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._model_id = model_id
        self._max_alerts = max_alerts
        self._max_us = round(max_seconds * 1e6)
        self._tenant_share = tenant_share
        self._clock = clock

    def now_us(self) -> int:
        return round(self._clock() * 1e6)

    async def add(self, new: Sequence[NewAlert]) -> None:
        """Stores alerts, all or none, and returns once they are on the disk."""
        await self._database.write(lambda connection: self._add(connection, new))

    async def start(self, tenant: str, *, oldest: bool) -> int:
        """Where a reader begins: after the newest alert, or before the oldest that is stored."""
        select = self._series(tenant)
        state = await self._database.read(lambda connection: connection.execute(select).first())
        if state is None:
            # So that a reader's place never is behind what comes, whatever a clock says.
            state = await self._database.write(lambda connection: self._state(connection, tenant))
        if not oldest:
            return state.last
        # Also where there was none a moment ago: the first of all may have come meanwhile.
        first = sa.select(sa.func.min(alerts.c.sequence)).where(self._of(tenant))
        found = await self._database.read(lambda connection: connection.scalar(first))
        return state.last if found is None else found - 1

    async def check(self, tenant: str, place: int) -> None:
        """Raises RESUME_TOKEN_INVALID for a place that no alert of the tenant has reached."""
        select = self._series(tenant)
        state = await self._database.read(lambda connection: connection.execute(select).first())
        if state is None or place > state.last:
            raise ActserveError(
                Reason.RESUME_TOKEN_INVALID,
                "the token is of alerts that this server has never had; begin without one, or "
                "with from_oldest",
                field=("resume_token",),
            )

    async def page(
        self, tenant: str, after: int, wanted: AlertFilter, count: int = AT_ONCE
    ) -> AlertPage:
        """The next alerts after a place that fit, in order; of `wanted` what never changes of an
        alert."""
        return await self._database.read(
            lambda connection: self._page(connection, tenant, after, wanted, count)
        )

    async def lasts(self, tenants: Collection[str]) -> Mapping[str, int]:
        """Of each tenant that has had alerts, the place of the newest."""
        query = sa.select(sequences.c.tenant, sequences.c.last).where(
            sequences.c.model_id == self._model_id, sequences.c.tenant.in_(tenants)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.tenant: row.last for row in rows}

    async def get(self, tenant: str, alert: str) -> StoredAlert:
        """The alert of that id. Raises RESOURCE_NOT_FOUND."""
        return await self._database.read(
            lambda connection: self._read(self._found(connection, tenant, alert))
        )

    async def list(
        self, tenant: str, before: int | None, count: int, wanted: AlertFilter
    ) -> Sequence[StoredAlert]:
        """The newest alerts that fit, the newest first; with `before` older than that place."""
        select = sa.select(alerts).where(self._of(tenant), *self._fitting(wanted))
        if before is not None:
            select = select.where(alerts.c.sequence < before)
        select = select.order_by(alerts.c.sequence.desc()).limit(count)
        return await self._database.read(
            lambda connection: [self._read(each) for each in connection.execute(select)]
        )

    async def decide(self, tenant: str, alert: str, decision: Decision) -> StoredAlert:
        """Decides about a sample that is paused, unless it was decided the same before. Raises
        RESOURCE_NOT_FOUND, or ALERT_DECIDED if it was decided otherwise, or waits for nothing."""

        def write(connection: sa.Connection) -> StoredAlert:
            found = self._read(self._found(connection, tenant, alert))
            if found.action is not Action.PAUSE or found.decision not in (None, decision):
                raise self._decided(found)
            connection.execute(
                alerts.update()
                .where(self._of(tenant), alerts.c.id == alert)
                .values(decision=NUMBERS[decision])
            )
            return self._read(self._found(connection, tenant, alert))

        return await self._database.write(write)

    async def lapse(self, tenant: str, alert: str) -> None:
        """Says that nobody waits for a decision any more, unless there is one."""
        statement = (
            alerts.update()
            .where(
                self._of(tenant),
                alerts.c.id == alert,
                alerts.c.action == int(Action.PAUSE),
                alerts.c.decision == 0,
            )
            .values(decision=NUMBERS[Decision.LAPSED])
        )
        await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def decisions(self, ids: Collection[str]) -> Mapping[str, Decision]:
        """What was decided of these alerts, of whatever tenants, by id."""
        query = sa.select(alerts.c.id, alerts.c.decision).where(
            alerts.c.model_id == self._model_id, alerts.c.id.in_(ids), alerts.c.decision != 0
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.id: DECISIONS[row.decision] for row in rows}

    async def explain(self, tenant: str, alert: str, explanation: str) -> None:
        """Says what an NLA says of its row, if it is still stored."""
        statement = (
            alerts.update()
            .where(self._of(tenant), alerts.c.id == alert)
            .values(explanation=_stored(explanation))
        )
        await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def delete(self, tenant: str, wanted: AlertFilter) -> int:
        """Deletes the alerts that fit and are there now, but for those of samples that are paused.
        Returns how many."""
        last = (await self.lasts([tenant])).get(tenant, 0)
        which = (self._of(tenant), ~self._waits(), *self._fitting(wanted))
        count = after = 0
        # Some at a time, and found before: others wait to write meanwhile.
        while found := await self._some(after, last, *which):
            some = (*which, alerts.c.sequence.in_(found))
            count += await self._database.write(partial(self._delete, which=some))
            after = found[-1]
        return count

    async def expire(self) -> None:
        """Deletes alerts whose time is over, of all tenants and models."""
        oldest = self.now_us() - self._max_us
        old = (alerts.c.raise_time_us <= oldest, ~self._waits())
        while await self._database.write(partial(self._delete, which=old)):
            pass
        await self._database.write(lambda connection: self._forget(connection, oldest))

    async def count(self) -> int:
        """How many alerts are stored, of all tenants and models."""
        query = sa.select(sa.func.coalesce(sa.func.sum(totals.c.alerts), 0))
        return int(await self._database.read(lambda connection: connection.scalar(query)) or 0)

    def name(self, alert: str) -> str:
        """Of an alert, as a resource."""
        return f"models/{self._model_id}/alerts/{alert}"

    def _of(self, tenant: str) -> sa.ColumnElement[bool]:
        return sa.and_(alerts.c.tenant == tenant, alerts.c.model_id == self._model_id)

    def _series(self, tenant: str) -> "sa.Select[Any]":
        return sa.select(sequences).where(
            sequences.c.tenant == tenant, sequences.c.model_id == self._model_id
        )

    def _waits(self) -> sa.ColumnElement[bool]:
        """Whether a sample waits for a decision."""
        return sa.and_(
            alerts.c.action == int(Action.PAUSE),
            alerts.c.decision == 0,
            alerts.c.decide_by_us > self.now_us() - GRACE_US,
        )

    def _fitting(self, wanted: AlertFilter) -> Iterator[sa.ColumnElement[bool]]:
        if wanted.monitors:
            yield alerts.c.monitor.in_(sorted(wanted.monitors))
        if wanted.level is not None:
            yield alerts.c.level == int(wanted.level)
        if wanted.end_user:
            yield alerts.c.end_user == wanted.end_user
        if wanted.undecided:
            yield self._waits()
        if wanted.before_us is not None:
            yield alerts.c.raise_time_us < wanted.before_us

    def _state(self, connection: sa.Connection, tenant: str) -> "sa.Row[Any]":
        """How far a tenant's alerts have come; from now on, if there were none."""
        select = self._series(tenant)
        state = connection.execute(select).first()
        if state is not None:
            return state
        now = self.now_us()
        connection.execute(
            sequences.insert(),
            {
                "tenant": tenant,
                "model_id": self._model_id,
                "before_first": now,
                "last": now,
                "forgotten": 0,
                "last_time_us": now,
            },
        )
        return connection.execute(select).one()

    def _add(self, connection: sa.Connection, new: Sequence[NewAlert]) -> None:
        by_tenant: dict[str, list[NewAlert]] = {}
        for each in new:
            by_tenant.setdefault(each.call.tenant, []).append(each)
        rows, more = [], Counter[str]()
        for tenant, own in by_tenant.items():
            last = self._state(connection, tenant).last
            rows += [self._row(each, last + number) for number, each in enumerate(own, 1)]
            more[account(tenant)] += len(own)
            connection.execute(
                sequences.update()
                .where(sequences.c.tenant == tenant, sequences.c.model_id == self._model_id)
                .values(last=last + len(own), last_time_us=self.now_us())
            )
        # With RETURNING many rows go in one statement, which on PostgreSQL is one round trip.
        connection.execute(alerts.insert().returning(alerts.c.sequence), rows)
        _count(connection, more)
        for whose in more:
            limit = int(self._max_alerts * (self._tenant_share if whose else 1)) or 1
            self._make_room(connection, limit, totals.c.account == whose, alerts.c.account == whose)
        self._make_room(connection, self._max_alerts, sa.true(), sa.true())

    def _row(self, new: NewAlert, sequence: int) -> dict[str, Any]:
        call, crossing = new.call, new.crossing
        level = crossing.level
        pause = level.action if isinstance(level.action, Pause) else None
        due = 0 if pause is None else new.raised_at_us + round(pause.time_limit_s * 1e6)
        return {
            "tenant": call.tenant,
            "model_id": self._model_id,
            "sequence": sequence,
            "id": new.id,
            "account": account(call.tenant),
            "monitor": crossing.watcher.monitor.rpartition("/")[2],
            "monitor_etag": crossing.watcher.etag,
            "level": int(level.name),
            "score": crossing.score,
            "position": crossing.position,
            "call_id": call.call_id,
            "sample_index": crossing.sample_index,
            "end_user": call.end_user,
            "trace_id": call.trace_id,
            "raise_time_us": new.raised_at_us,
            "action": int(_action(level)),
            "decide_by_us": due,
            "proceed_after": pause is not None and pause.proceed_after,
            "decision": 0,
            "text": _stored(crossing.text),
            "explanation": "",
            "webhook": level.webhook or "",
            "delivery_state": int(DeliveryState.WAITING if level.webhook else DeliveryState.NONE),
            "delivery_attempts": 0,
            "delivery_error": "",
            "delivery_due_us": new.raised_at_us,
            "delivery_lease": "",
        }

    def _page(
        self, connection: sa.Connection, tenant: str, after: int, wanted: AlertFilter, count: int
    ) -> AlertPage:
        # First how far they have come: whatever is deleted after this is a gap in what follows.
        state = connection.execute(self._series(tenant)).first()
        if state is None:
            return AlertPage((), after, False)
        select = sa.select(alerts).where(self._of(tenant), alerts.c.sequence > after)
        found = connection.execute(select.order_by(alerts.c.sequence).limit(count)).all()
        has_more = len(found) == count
        end = found[-1].sequence if has_more else max(after, state.last)
        if found:
            end = max(end, found[-1].sequence)
        gaps = _gaps(after, state.before_first, [each.sequence for each in found], end)
        if after < state.before_first - self._max_us:
            # Those before it, if there were any, are gone with their numbers.
            gaps[0] = max(1, gaps[0])
        told = self._told(connection, tenant, wanted, state.forgotten) if any(gaps) else 0
        events: list[StoredAlert | LostAlerts] = []
        lost, place = 0, after
        for gap, row in zip(gaps, [*found, None], strict=True):
            if told > place or place < state.before_first - self._max_us:
                lost += gap
            alert = None if row is None else self._read(row)
            if alert is not None and not wanted.fits(alert):
                place = alert.sequence
                continue
            if lost:
                events.append(LostAlerts(lost))
                lost = 0
            if alert is not None:
                events.append(alert)
                place = alert.sequence
        return AlertPage(tuple(events), end, has_more)

    def _told(
        self, connection: sa.Connection, tenant: str, wanted: AlertFilter, forgotten: int
    ) -> int:
        """Up to which place a reader is told of what is gone: up to there alerts are of what it
        reads, or may be."""
        query = sa.select(sa.func.max(alerts_gone.c.last)).where(
            alerts_gone.c.tenant == tenant, alerts_gone.c.model_id == self._model_id
        )
        if wanted.monitors:
            query = query.where(alerts_gone.c.monitor.in_(sorted(wanted.monitors)))
        return max(forgotten, connection.scalar(query) or 0)

    def _found(self, connection: sa.Connection, tenant: str, alert: str) -> "sa.Row[Any]":
        select = sa.select(alerts).where(self._of(tenant), alerts.c.id == alert)
        record = connection.execute(select).first()
        if record is None:
            raise not_found(self.name(alert))
        return record

    def _decided(self, alert: StoredAlert) -> ActserveError:
        decision = "" if alert.decision is None else alert.decision.name
        if alert.decision is Decision.LAPSED:
            problem = (
                "nobody waits for it any more, since its call has ended, or another level or "
                "monitor said what is done with the sample"
            )
        elif alert.action is Action.PAUSE:
            problem = f"it was decided already, to {decision.lower()}"
        else:
            problem = "it is not of a sample that is paused"
        return ActserveError(
            Reason.ALERT_DECIDED,
            f"nothing can be decided about the alert {alert.id!r}: {problem}; decide about those "
            "that ListAlerts finds with the filter undecided",
            field=("name",),
            metadata={"resource_name": self.name(alert.id), "decision": decision},
        )

    def _make_room(
        self,
        connection: sa.Connection,
        limit: int,
        counted: sa.ColumnElement[bool],
        which: sa.ColumnElement[bool],
    ) -> None:
        """Deletes the oldest of some alerts until there are no more than this."""
        query = sa.select(sa.func.coalesce(sa.func.sum(totals.c.alerts), 0)).where(counted)
        while (excess := int(connection.scalar(query) or 0) - limit) > 0:
            oldest = (which, ~self._waits())
            gone = self._delete(connection, oldest, limit=min(excess, AT_ONCE))
            if not gone:
                return

    async def _some(self, after: int, last: int, *which: sa.ColumnElement[bool]) -> Sequence[int]:
        """The first places of alerts of one tenant after one place and up to another, ascending."""
        place = alerts.c.sequence
        select = sa.select(place).where(*which, place > after, place <= last)
        select = select.order_by(place).limit(AT_ONCE)
        return await self._database.read(lambda connection: connection.scalars(select).all())

    def _delete(
        self,
        connection: sa.Connection,
        which: Sequence[sa.ColumnElement[bool]],
        limit: int = AT_ONCE,
    ) -> int:
        """Deletes the oldest of some alerts, and remembers whose are gone. Returns how many."""
        columns = [alerts.c.tenant, alerts.c.model_id, alerts.c.sequence]
        select = sa.select(*columns, alerts.c.account, alerts.c.monitor).where(*which)
        select = select.order_by(alerts.c.raise_time_us, alerts.c.sequence).limit(limit)
        rows = connection.execute(select).all()
        if not rows:
            return 0
        numbers: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            numbers.setdefault((row.tenant, row.model_id), []).append(row.sequence)
        for (tenant, model_id), own in numbers.items():
            connection.execute(
                alerts.delete().where(
                    alerts.c.tenant == tenant,
                    alerts.c.model_id == model_id,
                    alerts.c.sequence.in_(own),
                )
            )
        fewer = Counter[str]()
        fewer.subtract(row.account for row in rows)
        _count(connection, fewer)
        last: dict[tuple[str, str, str], int] = {}
        for row in rows:
            key = (row.tenant, row.model_id, row.monitor)
            last[key] = max(last.get(key, 0), row.sequence)
        for key, sequence in last.items():
            _note_gone(connection, *key, sequence)
        for tenant, model_id in numbers:
            _forget_oldest(connection, tenant, model_id)
        return len(rows)

    def _forget(self, connection: sa.Connection, oldest: int) -> None:
        """Deletes what is known of tenants that have had no alert for so long that all are gone."""
        any_left = sa.exists().where(
            alerts.c.tenant == sequences.c.tenant, alerts.c.model_id == sequences.c.model_id
        )
        old = sa.select(sequences.c.tenant, sequences.c.model_id).where(
            sequences.c.last_time_us <= oldest, ~any_left
        )
        for tenant, model_id in connection.execute(old.limit(AT_ONCE)).all():
            for table in (sequences, alerts_gone):
                connection.execute(
                    table.delete().where(table.c.tenant == tenant, table.c.model_id == model_id)
                )

    def _read(self, record: "sa.Row[Any]") -> StoredAlert:
        decision = DECISIONS.get(record.decision)
        action = Action(record.action)
        over = record.decide_by_us <= self.now_us() - GRACE_US
        if action is Action.PAUSE and decision is None and over:
            decision = Decision.PROCEED if record.proceed_after else Decision.STOP
        return StoredAlert(
            sequence=record.sequence,
            id=record.id,
            monitor=record.monitor,
            monitor_etag=record.monitor_etag,
            level=LevelName(record.level),
            score=record.score,
            position=record.position,
            call_id=record.call_id,
            sample_index=record.sample_index,
            end_user=record.end_user,
            trace_id=record.trace_id,
            raised_at_us=record.raise_time_us,
            action=action,
            decide_by_us=record.decide_by_us,
            decision=decision,
            text=record.text,
            explanation=record.explanation,
            delivery=DeliveryState(record.delivery_state),
            delivery_attempts=record.delivery_attempts,
            delivery_error=record.delivery_error,
        )


def not_found(name: str) -> ActserveError:
    """There is no alert of that name."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no alert {name[:200]!r}; list those that are there",
        field=("name",),
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def _stored(text: str) -> str:
    """What a model has said, as every database can store it: PostgreSQL refuses NUL characters, and
    with them all that is written at once."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _gaps(after: int, before_first: int, found: Sequence[int], end: int) -> list[int]:
    """How many numbers are missing before each of those found after a place, and behind the last
    one up to the end."""
    places = [max(after, before_first), *found]
    gaps = [following - place - 1 for place, following in zip(places, found, strict=False)]
    return [max(0, each) for each in gaps] + [max(0, end - places[-1])]


def _action(level: Level) -> Action:
    match level.action:
        case None:
            return Action.NONE
        case Stop():
            return Action.STOP
        case Intervene():
            return Action.INTERVENE
        case Pause():
            return Action.PAUSE


def _count(connection: sa.Connection, more: Mapping[str, int]) -> None:
    """Adds to how many alerts accounts have."""
    for whose, count in more.items():
        of = totals.c.account == whose
        changed = connection.execute(
            totals.update().where(of).values(alerts=totals.c.alerts + count)
        )
        if not changed.rowcount:
            connection.execute(totals.insert(), {"account": whose, "alerts": count})
    connection.execute(totals.delete().where(totals.c.alerts <= 0))


def _note_gone(
    connection: sa.Connection, tenant: str, model_id: str, monitor: str, sequence: int
) -> None:
    gone = alerts_gone.c
    of = sa.and_(gone.tenant == tenant, gone.model_id == model_id, gone.monitor == monitor)
    newest = sa.case((gone.last < sequence, sequence), else_=gone.last)
    if not connection.execute(alerts_gone.update().where(of).values(last=newest)).rowcount:
        connection.execute(
            alerts_gone.insert(),
            {"tenant": tenant, "model_id": model_id, "monitor": monitor, "last": sequence},
        )


def _forget_oldest(connection: sa.Connection, tenant: str, model_id: str) -> None:
    """Keeps what is known of gone alerts within bounds."""
    own = sa.and_(alerts_gone.c.tenant == tenant, alerts_gone.c.model_id == model_id)
    newest = sa.select(alerts_gone.c.last).where(own).order_by(alerts_gone.c.last.desc())
    beyond = connection.scalar(newest.offset(GONE).limit(1))
    if beyond is None:
        return
    connection.execute(alerts_gone.delete().where(own, alerts_gone.c.last <= beyond))
    connection.execute(
        sequences.update()
        .where(
            sequences.c.tenant == tenant,
            sequences.c.model_id == model_id,
            sequences.c.forgotten < beyond,
        )
        .values(forgotten=beyond)
    )
