"""The stored monitors of every tenant: found by name, and there until they are deleted.

What a tenant has stored does not exist for others. Every change of any monitor counts up a number,
by which other replicas learn that there is something new (`live.py`).
"""

import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.making_requests import MakingRequest
from actserve_server.domain.principals import account
from actserve_server.domain.tenant_rules import RulesOf, no_rules, smaller
from actserve_server.monitors.stored_monitors import Definition, NewMonitor, StoredMonitor
from actserve_server.storage.database import Database
from actserve_server.storage.tables import monitor_versions as versions
from actserve_server.storage.tables import monitors, score_hours

RESOURCE_TYPE = "actserve.v1.Monitor"
ID = re.compile("[a-z][a-z0-9-]{0,62}")
"""The last part of a monitor's name."""

Key = tuple[str, str]
"""A tenant, and the id of a monitor of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorQuota:
    """What is stored at most, over all tenants; one that has a name stores a share of it."""

    max_monitors: int
    max_bytes: int
    tenant_share: float = 1.0
    rules: RulesOf = no_rules


class MonitorRegistry:
    """The stored monitors of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(self, database: Database, model_id: str, quota: MonitorQuota) -> None:
        self._database = database
        self._model_id = model_id
        self._quota = quota

    async def made(self, tenant: str, request: MakingRequest) -> StoredMonitor | None:
        """What an equal request has made, to be asked before anything is done for it. Raises
        REQUEST_ID_REUSED if another one had its id."""
        return await self._database.read(lambda connection: self._made(connection, tenant, request))

    async def store(self, tenant: str, new: NewMonitor, request: MakingRequest) -> StoredMonitor:
        """Stores a monitor, or returns what an equal request has made.

        Raises RESOURCE_EXISTS, REQUEST_ID_REUSED or STORE_QUOTA_EXCEEDED, and stores nothing.
        """

        def write(connection: sa.Connection) -> StoredMonitor:
            if (made := self._made(connection, tenant, request)) is not None:
                return made
            taken = new.id or _free_id()
            if self._row(connection, tenant, taken) is not None:
                raise self._exists(taken)
            self._check_room(connection, tenant, new.definition.size_bytes, more=1)
            now = _now_us()
            connection.execute(
                monitors.insert(),
                {
                    "tenant": tenant,
                    "account": account(tenant),
                    "model_id": self._model_id,
                    "id": taken,
                    **_columns(new.definition),
                    "model_path": new.model_path,
                    "create_time_us": now,
                    "update_time_us": now,
                    "etag": _new_etag(),
                    "request_id": request.id,
                    "request_sha256": request.sha256,
                },
            )
            self._count_up(connection)
            return _read(self._found(connection, tenant, taken))

        return await self._database.write(write)

    async def get(self, tenant: str, monitor: str) -> StoredMonitor:
        """The monitor of that id. Raises RESOURCE_NOT_FOUND."""
        return await self._database.read(
            lambda connection: _read(self._found(connection, tenant, monitor))
        )

    async def list(self, tenant: str, after: str, count: int) -> Sequence[StoredMonitor]:
        """The first monitors by id that come after this one, without what is large and not told:
        their numbers."""
        columns = [each for each in monitors.c if each is not monitors.c.resolved]
        select = sa.select(*columns).where(self._of(tenant), monitors.c.id > after)
        select = select.order_by(monitors.c.id).limit(count)
        return await self._database.read(
            lambda connection: [_read(each) for each in connection.execute(select)]
        )

    async def replace(
        self,
        tenant: str,
        monitor: str,
        etag: str,
        change: Callable[[StoredMonitor], Definition],
    ) -> StoredMonitor:
        """Makes of a monitor that has this etag, or any if it is empty, what `change` makes of it.
        That is quick, for others wait to write meanwhile.

        Raises RESOURCE_NOT_FOUND, ETAG_MISMATCH or STORE_QUOTA_EXCEEDED, and what `change` raises.
        """

        def write(connection: sa.Connection) -> StoredMonitor:
            before = _read(self._found(connection, tenant, monitor, etag))
            after = change(before)
            grown = after.size_bytes - before.definition.size_bytes
            if grown > 0:
                self._check_room(connection, tenant, grown, more=0)
            connection.execute(
                monitors.update()
                .where(self._of(tenant), monitors.c.id == monitor)
                .values(**_columns(after), update_time_us=_now_us(), etag=_new_etag())
            )
            self._count_up(connection)
            return _read(self._found(connection, tenant, monitor))

        return await self._database.write(write)

    async def delete(self, tenant: str, monitor: str, etag: str) -> None:
        """Deletes a monitor that has this etag, or any if it is empty, and how its scores were
        distributed. Raises RESOURCE_NOT_FOUND or ETAG_MISMATCH."""

        def write(connection: sa.Connection) -> None:
            self._found(connection, tenant, monitor, etag)
            connection.execute(monitors.delete().where(self._of(tenant), monitors.c.id == monitor))
            connection.execute(
                score_hours.delete().where(
                    score_hours.c.tenant == tenant,
                    score_hours.c.model_id == self._model_id,
                    score_hours.c.monitor == monitor,
                )
            )
            self._count_up(connection)

        await self._database.write(write)

    async def version(self) -> int:
        """Another number whenever any monitor has changed."""
        query = sa.select(versions.c.version).where(versions.c.model_id == self._model_id)
        return await self._database.read(lambda connection: connection.scalar(query) or 0)

    async def etags(self) -> Mapping[Key, str]:
        """Which monitors there are, of all tenants, and their versions."""
        query = sa.select(monitors.c.tenant, monitors.c.id, monitors.c.etag).where(
            monitors.c.model_id == self._model_id
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {(row.tenant, row.id): row.etag for row in rows}

    async def load(self, keys: Collection[Key]) -> Sequence[StoredMonitor]:
        """Those of these monitors that are there, whosever they are."""
        query = sa.select(monitors).where(
            monitors.c.model_id == self._model_id,
            sa.tuple_(monitors.c.tenant, monitors.c.id).in_(keys),
        )
        return await self._database.read(
            lambda connection: [_read(each) for each in connection.execute(query)]
        )

    def name(self, monitor: str) -> str:
        """Of a monitor, as a resource."""
        return f"models/{self._model_id}/monitors/{monitor}"

    def _of(self, tenant: str) -> sa.ColumnElement[bool]:
        return sa.and_(monitors.c.tenant == tenant, monitors.c.model_id == self._model_id)

    def _row(self, connection: sa.Connection, tenant: str, monitor: str) -> "sa.Row[Any] | None":
        return connection.execute(
            sa.select(monitors).where(self._of(tenant), monitors.c.id == monitor)
        ).first()

    def _found(
        self, connection: sa.Connection, tenant: str, monitor: str, etag: str = ""
    ) -> "sa.Row[Any]":
        record = self._row(connection, tenant, monitor)
        if record is None:
            raise not_found(self.name(monitor), ("name",))
        if etag and record.etag != etag:
            raise ActserveError(
                Reason.ETAG_MISMATCH,
                f"the monitor {monitor!r} has changed since its etag was read; get it again, and "
                "make the change to that",
                field=("etag",),
                metadata={"resource_name": self.name(monitor)},
            )
        return record

    def _made(
        self, connection: sa.Connection, tenant: str, request: MakingRequest
    ) -> StoredMonitor | None:
        record = connection.execute(
            sa.select(monitors).where(self._of(tenant), monitors.c.request_id == request.id)
        ).first()
        if record is None:
            return None
        if bytes(record.request_sha256) != request.sha256:
            raise ActserveError(
                Reason.REQUEST_ID_REUSED,
                f"another request had the request_id {request.id!r}, and made the monitor "
                f"{record.id!r}; choose a new one for every new request, such as a UUID",
                field=("request_id",),
                metadata={"request_id": request.id},
            )
        return _read(record)

    def _exists(self, monitor: str) -> ActserveError:
        return ActserveError(
            Reason.RESOURCE_EXISTS,
            f"there is a monitor {monitor!r} already; choose another id, or delete it",
            field=("monitor_id",),
            metadata={"resource_type": RESOURCE_TYPE, "resource_name": self.name(monitor)},
        )

    def _check_room(
        self, connection: sa.Connection, tenant: str, wanted: int, *, more: int
    ) -> None:
        """Raises unless there is room for so many more bytes, of so many more monitors."""
        quota, whose = self._quota, account(tenant)
        share = quota.tenant_share if whose else 1.0
        own_limit = quota.rules(whose).max_monitors
        max_monitors = smaller(int(quota.max_monitors * share), own_limit)
        max_bytes = int(quota.max_bytes * share)
        held = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(monitors.c.size_bytes), 0))
        count, stored = map(int, connection.execute(held).one())
        own_count, own = map(int, connection.execute(held.where(monitors.c.account == whose)).one())
        # Of what others store nothing is told but that there is no room.
        if more and own_count >= max_monitors:
            problem = f"{own_count} monitors are stored, and at most {max_monitors} may be"
        elif own + wanted > max_bytes:
            problem = (
                f"the numbers of this monitor take {wanted} more bytes, and those that are stored "
                f"take {own}, but they may take at most {max_bytes}"
            )
        elif (more and count >= quota.max_monitors) or stored + wanted > quota.max_bytes:
            problem = "other tenants leave no room for another monitor now"
        else:
            return
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{problem}; delete some that are stored, or ask the server's operator for more",
            metadata={"bytes": wanted, "stored_bytes": own, "limit": max_bytes},
        )

    def _count_up(self, connection: sa.Connection) -> None:
        own = versions.c.model_id == self._model_id
        changed = connection.execute(
            versions.update().where(own).values(version=versions.c.version + 1)
        )
        if not changed.rowcount:
            connection.execute(versions.insert(), {"model_id": self._model_id, "version": 1})


def not_found(name: str, field: FieldPath) -> ActserveError:
    """There is no monitor of that name."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no monitor {name[:200]!r}; create it, or list those that are there",
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def _columns(definition: Definition) -> dict[str, Any]:
    return {
        "message": definition.message,
        "resolved": definition.resolved,
        "parts": {level: list(counts) for level, counts in definition.parts.items()},
        "fit": definition.fit,
        "edges": definition.edges,
        "scored_by": definition.scored_by,
        "size_bytes": definition.size_bytes,
    }


def _read(record: "sa.Row[Any]") -> StoredMonitor:
    return StoredMonitor(
        tenant=record.tenant,
        id=record.id,
        definition=Definition(
            message=bytes(record.message),
            resolved=bytes(getattr(record, "resolved", b"")),
            parts=record.parts,
            edges=bytes(record.edges),
            scored_by=record.scored_by,
            size_bytes=record.size_bytes,
            fit=bytes(record.fit),
        ),
        model_path=record.model_path,
        created_at_us=record.create_time_us,
        updated_at_us=record.update_time_us,
        etag=record.etag,
    )


def _now_us() -> int:
    return time.time_ns() // 1000


def _free_id() -> str:
    """One that nobody has: 2^80 possibilities do not meet."""
    return f"monitor-{secrets.token_hex(10)}"


def _new_etag() -> str:
    return secrets.token_hex(8)
