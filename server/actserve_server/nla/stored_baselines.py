"""Baselines that were measured, in the database: by tenant, NLA and short name.

A tenant sees its own, those that were measured for all, and what the checkpoint says, which is the
default one. Where two have one name, the one that comes first here counts. A baseline is of rows
of one site, so one that was measured for a pair of the same id at another site is not seen.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.principals import account
from actserve_server.engine.fair_threads import off_loop
from actserve_server.nla.autoencoder import NlaInfo
from actserve_server.nla.baselines import check_name, measure
from actserve_server.nla.profile import Baseline
from actserve_server.storage.database import Database
from actserve_server.storage.tables import explanation_baselines as table

DEFAULT = "default"
"""The baseline of requests that name none."""
MAX_OF_ONE = 64
"""Of one NLA that are stored for a tenant with all its parts, and for all tenants: all that one
sees are listed with the NLA."""
RESOURCE_TYPE = "actserve.v1.ExplanationBaseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineQuota:
    """What is stored of one NLA at most, over all tenants; one that has a name stores a share."""

    max_baselines: int
    """Zero stores none."""
    tenant_share: float = 1.0


class StoredBaselines:
    """Those of all NLAs of the server. Every method raises STORE_UNREACHABLE."""

    def __init__(self, database: Database, quota: BaselineQuota) -> None:
        self._database = database
        self._quota = quota

    async def all(self, nla: NlaInfo, tenant: str) -> Mapping[str, Baseline]:
        """What a tenant sees, by short name."""
        return await self._database.read(lambda connection: _seen(connection, nla, tenant))

    async def get(self, nla: NlaInfo, name: str, field: FieldPath, tenant: str) -> Baseline | None:
        """The baseline of that short name; of an empty one the default, None if there is none.

        Raises BASELINE_NOT_FOUND; `field` is the path of the field that names it.
        """
        wanted = name or DEFAULT
        seen = await self._database.read(lambda each: _seen(each, nla, tenant, wanted))
        if name and name not in seen:
            known = ", ".join(sorted(await self.all(nla, tenant))) or "none yet"
            raise _unknown(
                name,
                f"there is no baseline {name[:100]!r} of this NLA, which has {known}; use one that "
                "it has, or measure one",
                field,
            )
        return seen.get(wanted)

    async def measure(
        self, nla: NlaInfo, name: str, rows: np.ndarray, tenant: str, *, shared: bool = False
    ) -> Baseline:
        """Measures rows, float32 [rows, width], and stores the result under a short name, in place
        of any that has it: for a tenant, or for all.

        Raises FIELD_INVALID for the name, STORE_QUOTA_EXCEEDED, and what measuring raises.
        """
        check_name(name)
        measured = await off_loop(measure, rows)
        record = {
            **_key(nla, name, tenant, shared=shared),
            "account": account("" if shared else tenant),
            "site": str(nla.profile.site),
            "width": nla.profile.width,
            "variance": measured.variance,
            "median_norm": measured.median_norm,
            "rows": measured.rows,
            "mean": _mean_bytes(measured),
            "create_time_us": time.time_ns() // 1000,
        }

        def write(connection: sa.Connection) -> None:
            connection.execute(table.delete().where(*_has(_key(nla, name, tenant, shared=shared))))
            self._check_room(connection, nla, tenant, shared=shared)
            connection.execute(table.insert(), record)

        await self._database.write(write)
        return measured

    async def delete(self, nla: NlaInfo, name: str, tenant: str, *, shared: bool = False) -> None:
        """Forgets what was measured under a short name, for a tenant or for all; what the
        checkpoint says is then the default again.

        Raises BASELINE_NOT_FOUND where nothing was.
        """
        forget = table.delete().where(*_has(_key(nla, name, tenant, shared=shared)))
        if await self._database.write(lambda each: each.execute(forget).rowcount) == 0:
            whose = "all tenants" if shared else "your tenant"
            raise _unknown(
                name,
                f"no baseline {name[:100]!r} was measured for {whose}; what the checkpoint says, "
                "and what was measured for others, stays",
                ("name",),
            )

    def _check_room(
        self, connection: sa.Connection, nla: NlaInfo, tenant: str, *, shared: bool
    ) -> None:
        """Raises STORE_QUOTA_EXCEEDED unless one more may be stored."""
        quota, whose = self._quota, account("" if shared else tenant)
        most = MAX_OF_ONE
        if whose:
            most = min(most, int(quota.max_baselines * quota.tenant_share))
        stored = sa.select(sa.func.count()).where(
            table.c.model_id == nla.model_id, table.c.nla == nla.id
        )
        owned = stored.where(table.c.shared == shared, table.c.account == whose)
        own = int(connection.execute(owned).scalar_one())
        # Of what others store nothing is told but that there is no room.
        if quota.max_baselines == 0:
            problem = "this server stores no baselines (max_baselines is 0)"
        elif own >= most:
            of_whom = "for all tenants" if shared else "for you, or other parts of your tenant,"
            problem = f"{own} baselines of this NLA are stored {of_whom} and at most {most} may be"
        elif int(connection.execute(stored).scalar_one()) >= quota.max_baselines:
            problem = "other tenants leave no room for another baseline of this NLA now"
        else:
            return
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{problem}; delete one that is stored, or measure one anew under its name",
            field=("name",),
            metadata={"limit": most},
        )


def _key(nla: NlaInfo, name: str, tenant: str, *, shared: bool) -> dict[str, Any]:
    """What tells one baseline from all others."""
    return {
        "shared": shared,
        "tenant": "" if shared else tenant,
        "model_id": nla.model_id,
        "nla": nla.id,
        "id": name,
    }


def _has(key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]


def _seen(
    connection: sa.Connection, nla: NlaInfo, tenant: str, name: str | None = None
) -> dict[str, Baseline]:
    """What a tenant sees, by short name; of one name alone where it is given."""
    select = sa.select(table).where(
        table.c.model_id == nla.model_id,
        table.c.nla == nla.id,
        table.c.site == str(nla.profile.site),
        table.c.width == nla.profile.width,
        table.c.shared | (table.c.tenant == tenant),
    )
    own = {} if nla.profile.baseline is None else {DEFAULT: nla.profile.baseline}
    if name is not None:
        select = select.where(table.c.id == name)
        own = {at: baseline for at, baseline in own.items() if at == name}
    # Those of all first, so that the tenant's own take their place.
    found = connection.execute(select.order_by(table.c.shared.desc())).all()
    return own | {each.id: _baseline(each) for each in found}


def _mean_bytes(measured: Baseline) -> bytes:
    assert measured.mean is not None  # Measuring always finds one.
    return measured.mean.astype("<f4").tobytes()


def _baseline(record: "sa.Row[Any]") -> Baseline:
    return Baseline(
        variance=record.variance,
        mean=np.frombuffer(record.mean, "<f4").astype(np.float32),
        median_norm=record.median_norm,
        rows=record.rows,
    )


def _unknown(name: str, message: str, field: FieldPath) -> ActserveError:
    return ActserveError(
        Reason.BASELINE_NOT_FOUND,
        message,
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
    )
