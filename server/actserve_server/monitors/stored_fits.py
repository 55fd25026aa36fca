"""How far fits have come, told by the server that does one to all others.

It says so again and again; of one that has said nothing for `LEASE_S` the work is over, since a
server that was killed cannot say that it was. Clocks of replicas may differ by less than that.
"""

import time
from collections.abc import Collection, Mapping

import sqlalchemy as sa

from actserve_server.domain.work import LEASE_S, WorkProgress, WorkState
from actserve_server.storage.database import Database
from actserve_server.storage.tables import monitor_fits as fits


class StoredFits:
    """Of the monitors of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(self, database: Database, model_id: str, lease_s: float = LEASE_S) -> None:
        self._database = database
        self._model_id = model_id
        self.lease_s = lease_s

    async def begin(self, tenant: str, monitor: str, etag: str, progress: WorkProgress) -> bool:
        """Whether nobody does it yet, in which case the caller does from now on."""

        def write(connection: sa.Connection) -> bool:
            own = self._own(tenant, [monitor], etag)
            if connection.execute(sa.select(fits.c.monitor).where(own)).first() is not None:
                return False
            key = {
                "tenant": tenant,
                "model_id": self._model_id,
                "monitor": monitor,
                "monitor_etag": etag,
            }
            connection.execute(fits.insert(), {**key, **_columns(progress)})
            return True

        return await self._database.write(write)

    async def tell(self, tenant: str, monitor: str, etag: str, progress: WorkProgress) -> bool:
        """Says how far it has come; whether anybody wants it still."""
        update = fits.update().where(self._own(tenant, [monitor], etag))
        return await self._database.write(
            lambda connection: connection.execute(update.values(**_columns(progress))).rowcount > 0
        )

    async def end(self, tenant: str, monitor: str) -> None:
        """Nobody works for this monitor any more."""
        delete = fits.delete().where(self._own(tenant, [monitor]))
        await self._database.write(lambda connection: connection.execute(delete))

    async def of(
        self, tenant: str, monitors: Collection[str]
    ) -> Mapping[tuple[str, str], WorkProgress]:
        """The work that goes on somewhere for some monitors, by their ids and etags."""
        select = sa.select(fits).where(
            self._own(tenant, monitors), fits.c.seen_time_us > _now_us() - self.lease_s * 1e6
        )
        rows = await self._database.read(lambda connection: connection.execute(select).all())
        return {
            (row.monitor, row.monitor_etag): WorkProgress(
                WorkState(row.state), row.steps_done, row.steps
            )
            for row in rows
        }

    def _own(
        self, tenant: str, monitors: Collection[str], etag: str = ""
    ) -> sa.ColumnElement[bool]:
        found = sa.and_(
            fits.c.tenant == tenant,
            fits.c.model_id == self._model_id,
            fits.c.monitor.in_(monitors),
        )
        return sa.and_(found, fits.c.monitor_etag == etag) if etag else found


def _columns(progress: WorkProgress) -> dict[str, int]:
    return {
        "state": int(progress.state),
        "steps_done": progress.steps_done,
        "steps": progress.steps,
        "seen_time_us": _now_us(),
    }


def _now_us() -> int:
    return time.time_ns() // 1000
