"""Finished cells of sweeps, by tenant, so that an equal sweep need not run them again.

They are a help and no promise: what cannot be stored is not, what cannot be read is run again, and
the oldest go first where there is no room. An account takes at most its share of the room, so that
nobody pushes out what everybody else has.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import account
from actserve_server.storage.database import Database
from actserve_server.storage.tables import sweep_cell_totals as totals
from actserve_server.storage.tables import sweep_cells as cells

ROW_BYTES = 200
"""What a cell takes beside its message, in the table and its indices."""
DELETED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class SweepKey:
    """Whose sweep, and which: the hash of all that its cells depend on."""

    tenant: str
    sha256: bytes

    @property
    def account(self) -> str:
        return account(self.tenant)


class StoredCells:
    """Cells of all sweeps; messages are bytes here. `clock` tells seconds since 1970."""

    def __init__(
        self,
        database: Database,
        *,
        max_bytes: int,
        max_seconds: float,
        tenant_share: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """With no room nothing is stored. A tenant that has a name may take `tenant_share` of
        it."""
        self._database = database
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._tenant_share = tenant_share
        self._clock = clock

    async def numbers(self, key: SweepKey) -> frozenset[int]:
        """Of the cells of a sweep that are stored; none where they cannot be read."""
        query = sa.select(cells.c.cell).where(self._of(key))
        try:
            return frozenset(
                await self._database.read(lambda connection: connection.scalars(query).all())
            )
        except ActserveError as error:
            _pass_by(error)
            return frozenset()

    async def read(self, key: SweepKey, numbers: Collection[int]) -> Mapping[int, bytes]:
        """Those of these cells that are stored, by number."""
        query = sa.select(cells.c.cell, cells.c.message).where(
            self._of(key), cells.c.cell.in_(numbers)
        )
        try:
            rows = await self._database.read(lambda connection: connection.execute(query).all())
        except ActserveError as error:
            _pass_by(error)
            return {}
        return {row.cell: row.message for row in rows}

    async def write(self, key: SweepKey, messages: Mapping[int, bytes]) -> bool:
        """Stores cells of a sweep, in place of what is stored of them. False if it cannot."""
        limit = int(self._max_bytes * (self._tenant_share if key.account else 1))
        now = self._now_us()
        rows = [
            {
                "tenant": key.tenant,
                "sweep_sha256": key.sha256,
                "cell": number,
                "account": key.account,
                "message": message,
                "size_bytes": len(message) + ROW_BYTES,
                "create_time_us": now,
            }
            for number, message in messages.items()
        ]
        wanted = sum(row["size_bytes"] for row in rows)
        if not rows or wanted > limit:
            return False

        def store(connection: sa.Connection) -> None:
            _delete(connection, self._same(key), cells.c.cell.in_(messages.keys()))
            _delete(connection, cells.c.create_time_us <= self._oldest_us(), limit=DELETED_AT_ONCE)
            own = cells.c.account == key.account
            _make_room(connection, limit - wanted, totals.c.account == key.account, own)
            _make_room(connection, self._max_bytes - wanted, sa.true(), sa.true())
            connection.execute(cells.insert(), rows)
            _count(connection, {key.account: wanted})

        try:
            await self._database.write(store)
        except ActserveError as error:
            _pass_by(error)
            return False
        return True

    async def expire(self) -> None:
        """Deletes cells whose time is over, of all tenants."""
        old = cells.c.create_time_us <= self._oldest_us()
        try:
            # A few at a time: others wait to write meanwhile.
            while await self._database.write(
                lambda connection: _delete(connection, old, limit=DELETED_AT_ONCE)
            ):
                pass
        except ActserveError as error:
            _pass_by(error)

    def _of(self, key: SweepKey) -> sa.ColumnElement[bool]:
        return sa.and_(self._same(key), cells.c.create_time_us > self._oldest_us())

    def _same(self, key: SweepKey) -> sa.ColumnElement[bool]:
        return sa.and_(cells.c.tenant == key.tenant, cells.c.sweep_sha256 == key.sha256)

    def _now_us(self) -> int:
        return round(self._clock() * 1e6)

    def _oldest_us(self) -> int:
        return self._now_us() - round(self._max_seconds * 1e6)


def _pass_by(error: ActserveError) -> None:
    """The database has said that it cannot be reached; a sweep goes on without."""
    if error.reason is not Reason.STORE_UNREACHABLE:
        raise error


def _make_room(
    connection: sa.Connection,
    limit: int,
    counted: sa.ColumnElement[bool],
    which: sa.ColumnElement[bool],
) -> None:
    """Deletes the oldest of some cells until they take no more than this."""
    query = sa.select(sa.func.coalesce(sa.func.sum(totals.c.stored_bytes), 0)).where(counted)
    while (excess := (connection.scalar(query) or 0) - limit) > 0:
        if not _delete(connection, which, limit=DELETED_AT_ONCE, enough=excess):
            return


def _delete(
    connection: sa.Connection,
    *which: sa.ColumnElement[bool],
    limit: int | None = None,
    enough: int | None = None,
) -> int:
    """Deletes cells, the oldest first where only so many go, or so many bytes are enough. Returns
    how many."""
    query = sa.select(
        cells.c.tenant, cells.c.sweep_sha256, cells.c.cell, cells.c.account, cells.c.size_bytes
    )
    oldest = query.where(*which).order_by(cells.c.create_time_us).limit(limit)
    rows = connection.execute(oldest).all()
    if enough is not None:
        sizes = list(accumulate(row.size_bytes for row in rows))
        rows = rows[: bisect_left(sizes, enough) + 1]
    if not rows:
        return 0
    connection.execute(
        cells.delete().where(
            cells.c.tenant == sa.bindparam("of"),
            cells.c.sweep_sha256 == sa.bindparam("sweep"),
            cells.c.cell == sa.bindparam("number"),
        ),
        [{"of": row.tenant, "sweep": row.sweep_sha256, "number": row.cell} for row in rows],
    )
    freed: dict[str, int] = {}
    for row in rows:
        freed[row.account] = freed.get(row.account, 0) - row.size_bytes
    _count(connection, freed)
    return len(rows)


def _count(connection: sa.Connection, more: Mapping[str, int]) -> None:
    """Adds to what accounts take."""
    for who, size in more.items():
        of = totals.c.account == who
        changed = connection.execute(
            totals.update().where(of).values(stored_bytes=totals.c.stored_bytes + size)
        )
        if not changed.rowcount:
            connection.execute(totals.insert(), {"account": who, "stored_bytes": size})
    connection.execute(totals.delete().where(totals.c.stored_bytes <= 0))
