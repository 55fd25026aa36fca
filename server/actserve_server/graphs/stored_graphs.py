"""The attribution graphs of every tenant: begun once, found by name, and there for a time.

What a tenant has stored does not exist for others. How far work has come is told by the server that
does it to all others; of a graph of which it has said nothing for `LEASE_S` the work is over, since
a server that was killed cannot say that it was.
"""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.making_requests import MakingRequest
from actserve_server.domain.principals import account
from actserve_server.domain.tenant_rules import RulesOf, no_rules, smaller
from actserve_server.domain.work import LEASE_S, WorkProgress, WorkState
from actserve_server.storage.database import Database
from actserve_server.storage.tables import attribution_graph_parts as parts
from actserve_server.storage.tables import attribution_graphs as graphs

RESOURCE_TYPE = "actserve.v1.AttributionGraph"
COLLECTION = "attributionGraphs"

ID = re.compile("[a-z][a-z0-9-]{0,62}")
"""The last part of a graph's name."""
_EXPIRED_AT_ONCE = 20
_OVER = (WorkState.SUCCEEDED, WorkState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphQuota:
    """What is stored at most, over all tenants; one that has a name stores a share of it."""

    max_graphs: int
    max_bytes: int
    max_seconds: float
    tenant_share: float = 1.0
    rules: RulesOf = no_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGraph:
    """A graph to be begun."""

    id: str
    """The last part of its name; empty when the registry is to choose."""
    prompt: bytes
    """A serialized TokenizedPrompt."""
    settings: bytes
    """Serialized AttributionSettings."""
    dictionaries: tuple[str, ...] = ()
    """Ids of the transcoders, one for each layer; none for a graph of neurons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGraph:
    """A graph without its nodes and edges."""

    key: int
    tenant: str
    id: str
    prompt: bytes
    settings: bytes
    dictionaries: tuple[str, ...]
    progress: WorkProgress
    is_lost: bool
    """Whether the server that did the work is gone."""
    error: bytes
    """A serialized google.rpc.Status of work that failed."""
    nodes: int
    edges: int
    created_at_us: int
    """Microseconds since 1970 began, UTC."""
    expires_at_us: int

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of the work."""
        return self.is_lost or self.progress.state in _OVER


class GraphRegistry:
    """The graphs of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(
        self, database: Database, model_id: str, quota: GraphQuota, lease_s: float = LEASE_S
    ) -> None:
        self._database = database
        self._model_id = model_id
        self._quota = quota
        self._lease_s = lease_s

    async def made(self, tenant: str, request: MakingRequest) -> StoredGraph | None:
        """What an equal request has begun. Raises REQUEST_ID_REUSED if another one had its id."""
        return await self._database.read(lambda connection: self._made(connection, tenant, request))

    async def begin(
        self, tenant: str, new: NewGraph, request: MakingRequest
    ) -> tuple[StoredGraph, bool]:
        """Stores a graph whose work waits; or returns what an equal request has begun. The second
        is whether it is new, and the caller has to do the work.

        Raises RESOURCE_EXISTS, REQUEST_ID_REUSED or STORE_QUOTA_EXCEEDED, and stores nothing.
        """
        now = _now_us()

        def write(connection: sa.Connection) -> tuple[StoredGraph, bool]:
            if (made := self._made(connection, tenant, request)) is not None:
                return made, False
            self._expire(connection)
            taken = new.id or f"graph-{secrets.token_hex(10)}"
            if self._row(connection, tenant, taken) is not None:
                raise ActserveError(
                    Reason.RESOURCE_EXISTS,
                    f"there is an attribution graph {taken!r} already; choose another id, or "
                    "delete it",
                    field=("attribution_graph_id",),
                    metadata={"resource_type": RESOURCE_TYPE, "resource_name": self.name(taken)},
                )
            size = len(new.prompt) + len(new.settings)
            self._check_room(connection, tenant, size, 1)
            connection.execute(
                graphs.insert(),
                {
                    "tenant": tenant,
                    "account": account(tenant),
                    "model_id": self._model_id,
                    "id": taken,
                    "prompt": new.prompt,
                    "settings": new.settings,
                    "dictionaries": list(new.dictionaries),
                    **_columns(WorkProgress(WorkState.WAITING, 0, 0)),
                    "error": b"",
                    "nodes": 0,
                    "edges": 0,
                    "size_bytes": size,
                    "create_time_us": now,
                    "expire_time_us": now + round(self._quota.max_seconds * 1e6),
                    "request_id": request.id,
                    "request_sha256": request.sha256,
                },
            )
            return self._read(self._row(connection, tenant, taken)), True

        return await self._database.write(write)

    async def get(self, tenant: str, graph: str) -> StoredGraph:
        """The graph of that id. Raises RESOURCE_NOT_FOUND."""
        return await self._database.read(
            lambda connection: self._read(self._row(connection, tenant, graph), graph)
        )

    async def list(self, tenant: str, after: str, count: int) -> Sequence[StoredGraph]:
        """The first graphs by id that come after this one."""
        select = self._select(tenant).where(graphs.c.id > after).order_by(graphs.c.id).limit(count)
        return await self._database.read(
            lambda connection: [self._read(row) for row in connection.execute(select)]
        )

    async def delete(self, tenant: str, graph: str) -> StoredGraph:
        """Deletes a graph, and returns what it was. Raises RESOURCE_NOT_FOUND."""

        def write(connection: sa.Connection) -> StoredGraph:
            stored = self._read(self._row(connection, tenant, graph), graph)
            connection.execute(graphs.delete().where(graphs.c.key == stored.key))
            return stored

        return await self._database.write(write)

    async def tell(self, key: int, progress: WorkProgress) -> bool:
        """Says how far the work has come; whether anybody wants it still."""
        update = graphs.update().where(graphs.c.key == key).values(**_columns(progress))
        return await self._database.write(
            lambda connection: connection.execute(update).rowcount > 0
        )

    async def fail(self, key: int, progress: WorkProgress, error: bytes) -> None:
        """The work has ended with an error, a serialized Status."""
        progress = WorkProgress(WorkState.FAILED, progress.steps_done, progress.steps)
        update = graphs.update().where(graphs.c.key == key)
        await self._database.write(
            lambda connection: connection.execute(update.values(error=error, **_columns(progress)))
        )

    async def finish(
        self,
        stored: StoredGraph,
        messages: Sequence[bytes],
        *,
        steps: int,
        nodes: int,
        edges: int,
    ) -> None:
        """Stores what a graph consists of, as serialized events, and that it is done. Raises
        STORE_QUOTA_EXCEEDED, and stores nothing."""
        size = sum(map(len, messages))

        def write(connection: sa.Connection) -> None:
            self._expire(connection)
            if self._row(connection, stored.tenant, stored.id, stored.key) is None:
                return  # Nobody wants it any more.
            self._check_room(connection, stored.tenant, size, 0)
            connection.execute(
                parts.insert(),
                [
                    {"graph": stored.key, "number": number, "message": message}
                    for number, message in enumerate(messages)
                ],
            )
            connection.execute(
                graphs.update()
                .where(graphs.c.key == stored.key)
                .values(
                    nodes=nodes,
                    edges=edges,
                    size_bytes=graphs.c.size_bytes + size,
                    **_columns(WorkProgress(WorkState.SUCCEEDED, steps, steps)),
                )
            )

        await self._database.write(write)

    async def part(self, key: int, number: int) -> bytes | None:
        """What a graph consists of, one serialized event after another; None behind the last."""
        select = sa.select(parts.c.message).where(parts.c.graph == key, parts.c.number == number)
        found = await self._database.read(
            lambda connection: connection.execute(select).scalar_one_or_none()
        )
        return None if found is None else bytes(found)

    async def expire(self) -> None:
        """Deletes graphs whose time is over, of all tenants."""
        # A few at a time: others wait to write meanwhile.
        while await self._database.write(self._expire):
            pass

    def name(self, graph: str) -> str:
        return f"models/{self._model_id}/{COLLECTION}/{graph}"

    def _expire(self, connection: sa.Connection) -> bool:
        """Deletes some; whether there may be more."""
        old = sa.select(graphs.c.key).where(graphs.c.expire_time_us <= _now_us())
        keys = connection.execute(old.limit(_EXPIRED_AT_ONCE)).scalars().all()
        if keys:
            connection.execute(graphs.delete().where(graphs.c.key.in_(keys)))
        return len(keys) == _EXPIRED_AT_ONCE

    def _made(
        self, connection: sa.Connection, tenant: str, request: MakingRequest
    ) -> StoredGraph | None:
        row = connection.execute(
            self._select(tenant).where(graphs.c.request_id == request.id)
        ).first()
        if row is None:
            return None
        if bytes(row.request_sha256) != request.sha256:
            raise ActserveError(
                Reason.REQUEST_ID_REUSED,
                f"another request had the request_id {request.id!r}, and made the attribution "
                f"graph {row.id!r}; choose a new one for every new request, such as a UUID",
                field=("request_id",),
                metadata={"request_id": request.id},
            )
        return self._read(row)

    def _select(self, tenant: str) -> "sa.Select[Any]":
        return sa.select(graphs).where(
            graphs.c.tenant == tenant,
            graphs.c.model_id == self._model_id,
            graphs.c.expire_time_us > _now_us(),
        )

    def _row(
        self, connection: sa.Connection, tenant: str, graph: str, key: int | None = None
    ) -> "sa.Row[Any] | None":
        select = self._select(tenant).where(graphs.c.id == graph)
        if key is not None:
            select = select.where(graphs.c.key == key)
        return connection.execute(select).first()

    def _read(self, row: "sa.Row[Any] | None", graph: str = "") -> StoredGraph:
        if row is None:
            raise not_found(self.name(graph), ("name",))
        progress = WorkProgress(WorkState(row.state), row.steps_done, row.steps)
        silent_us = _now_us() - row.seen_time_us
        return StoredGraph(
            key=row.key,
            tenant=row.tenant,
            id=row.id,
            prompt=bytes(row.prompt),
            settings=bytes(row.settings),
            dictionaries=tuple(row.dictionaries),
            progress=progress,
            is_lost=progress.state not in _OVER and silent_us > self._lease_s * 1e6,
            error=bytes(row.error),
            nodes=row.nodes,
            edges=row.edges,
            created_at_us=row.create_time_us,
            expires_at_us=row.expire_time_us,
        )

    def _check_room(self, connection: sa.Connection, tenant: str, wanted: int, more: int) -> None:
        quota, whose = self._quota, account(tenant)
        share = quota.tenant_share if whose else 1.0
        max_graphs = smaller(int(quota.max_graphs * share), quota.rules(whose).max_graphs)
        max_bytes = int(quota.max_bytes * share)
        held = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(graphs.c.size_bytes), 0))
        count, stored = map(int, connection.execute(held).one())
        own_count, own = map(int, connection.execute(held.where(graphs.c.account == whose)).one())
        # Of what others store nothing is told but that there is no room.
        if own_count + more > max_graphs:
            problem = f"{own_count} attribution graphs are stored, and at most {max_graphs} may be"
        elif own + wanted > max_bytes:
            problem = (
                f"this attribution graph takes {wanted} bytes, and those that are stored take "
                f"{own}, but they may take at most {max_bytes}"
            )
        elif count + more > quota.max_graphs or stored + wanted > quota.max_bytes:
            problem = "other tenants leave no room for another attribution graph now"
        else:
            return
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{problem}; delete some that are stored, or ask the server's operator for more",
            metadata={"bytes": wanted, "stored_bytes": own, "limit": max_bytes},
        )


def not_found(name: str, field: FieldPath) -> ActserveError:
    """There is no graph of that name."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no attribution graph {name[:200]!r}; list those that are there, or create it",
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def _columns(progress: WorkProgress) -> dict[str, int]:
    return {
        "state": int(progress.state),
        "steps_done": progress.steps_done,
        "steps": progress.steps,
        "seen_time_us": _now_us(),
    }


def _now_us() -> int:
    return time.time_ns() // 1000
