"""The stored vectors of every tenant: made once, found by name, and there until they are deleted.

What a tenant has stored does not exist for others. Equal elements are stored once, whoever has
them; each vector counts for itself against the quotas, so that nobody learns what others have.
"""

import difflib
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.making_requests import MakingRequest
from actserve_server.domain.principals import account
from actserve_server.domain.tenant_rules import RulesOf, no_rules, smaller
from actserve_server.steering.shared_reads import SharedReads
from actserve_server.steering.stored_vectors import (
    LoadedVector,
    NewVector,
    StoredVector,
)
from actserve_server.steering.vector_contents import VectorContents
from actserve_server.steering.vector_records import read_vector, write_provenance, write_rows
from actserve_server.storage.database import Database
from actserve_server.storage.tables import (
    steering_vector_contents as contents,
)
from actserve_server.storage.tables import (
    steering_vector_labels as label_rows,
)
from actserve_server.storage.tables import (
    steering_vectors as vectors,
)

RESOURCE_TYPE = "actserve.v1.SteeringVector"

ID = re.compile("[a-z][a-z0-9-]{0,62}")
"""The last part of a vector's name."""
CACHE_BYTES = 64 << 20
"""Of elements that are remembered between calls."""
_SHARED_BYTES = 16 << 20
"""Of elements that calls read together."""
_LOOKED_AT = 1000
"""Ids among which near ones are looked for."""
_NEAR = 3
"""Near ids that are told at most."""

_Found = tuple[StoredVector, bytes]
"""A vector and its elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorQuota:
    """What is stored at most, over all tenants; one that has a name stores a share of it."""

    max_vectors: int
    max_bytes: int
    tenant_share: float = 1.0
    rules: RulesOf = no_rules


class Copies(Protocol):
    """Bounds the bytes that calls work with."""

    @property
    def max_own_bytes(self) -> int:
        """Of one caller."""
        ...

    def make(self, copy_bytes: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` returns, counted until nobody has it any more. Raises QUEUE_FULL."""
        ...


class VectorRegistry:
    """The stored vectors of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(
        self,
        database: Database,
        model_id: str,
        quota: VectorQuota,
        copies: Copies,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._database = database
        self._model_id = model_id
        self._quota = quota
        self._copies = copies
        self._contents = VectorContents(cache_bytes)
        self._shared = SharedReads(self._read_shared)

    async def made(self, tenant: str, request: MakingRequest) -> StoredVector | None:
        """What an equal request has made, to be asked before anything is done for it. Raises
        REQUEST_ID_REUSED if another one had its id."""
        return await self._database.read(lambda connection: self._made(connection, tenant, request))

    async def store(self, tenant: str, new: NewVector, request: MakingRequest) -> StoredVector:
        """Stores a vector, or returns what an equal request has made.

        Raises RESOURCE_EXISTS, REQUEST_ID_REUSED or STORE_QUOTA_EXCEEDED, and stores nothing.
        """
        elements = np.ascontiguousarray(new.elements, "<f4").tobytes()
        sha256 = hashlib.sha256(elements).digest()

        def write(connection: sa.Connection) -> StoredVector:
            if (made := self._made(connection, tenant, request)) is not None:
                return made
            taken = new.id or _free_id()
            if self._row(connection, tenant, taken) is not None:
                raise _exists(self._model_id, taken)
            self._check_room(connection, tenant, len(elements))
            here = sa.select(contents.c.sha256).where(contents.c.sha256 == sha256)
            if connection.execute(here).first() is None:
                connection.execute(contents.insert(), {"sha256": sha256, "elements": elements})
            connection.execute(
                vectors.insert(),
                {
                    "tenant": tenant,
                    "account": account(tenant),
                    "model_id": self._model_id,
                    "id": taken,
                    "content_sha256": sha256,
                    "width": new.elements.shape[1],
                    "size_bytes": len(elements),
                    "rows": write_rows(new.rows),
                    "labels": dict(new.labels),
                    "provenance": write_provenance(new.provenance),
                    "model_path": new.model_path,
                    "create_time_us": time.time_ns() // 1000,
                    "etag": _new_etag(),
                    "request_id": request.id,
                    "request_sha256": request.sha256,
                },
            )
            record = self._found(connection, tenant, taken)
            _write_labels(connection, record.key, new.labels)
            return read_vector(record)

        return await self._database.write(write)

    async def get(self, tenant: str, vector: str) -> StoredVector:
        """The vector of that id. Raises RESOURCE_NOT_FOUND."""
        return await self._database.read(
            lambda connection: read_vector(self._found(connection, tenant, vector))
        )

    async def load(self, tenant: str, ids: Mapping[str, FieldPath]) -> Mapping[str, LoadedVector]:
        """Vectors with their elements, by id. `ids` says of each where a request names it.

        Raises RESOURCE_NOT_FOUND, TOO_MANY_ROWS if all together are more than one caller may work
        with, or QUEUE_FULL if they are now.
        """
        if not ids:
            return {}
        found = await self._shared.get(tenant, ids)
        if ids.keys() <= found.keys():
            self._check_size((found[each][0] for each in ids), ids)
        else:
            found = await self._database.read(
                lambda connection: self._read_own(connection, tenant, ids)
            )
        return {each: self._loaded(*found[each]) for each in ids}

    async def list(
        self, tenant: str, after: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[StoredVector]:
        """The first vectors by id that come after this one and have all of these labels."""
        select = self._select(tenant).where(vectors.c.id > after)
        for key, value in labels.items():
            select = select.where(
                sa.exists().where(
                    label_rows.c.vector == vectors.c.key,
                    label_rows.c.key == key,
                    label_rows.c.value == value,
                )
            )
        select = select.order_by(vectors.c.id).limit(count)
        return await self._database.read(
            lambda connection: [read_vector(each) for each in connection.execute(select)]
        )

    async def relabel(
        self, tenant: str, vector: str, labels: Mapping[str, str], etag: str
    ) -> StoredVector:
        """Replaces the labels of a vector that has this etag, or any if it is empty. Raises
        RESOURCE_NOT_FOUND or ETAG_MISMATCH."""

        def write(connection: sa.Connection) -> StoredVector:
            record = self._found(connection, tenant, vector, etag)
            connection.execute(
                vectors.update()
                .where(vectors.c.key == record.key)
                .values(labels=dict(labels), etag=_new_etag())
            )
            connection.execute(label_rows.delete().where(label_rows.c.vector == record.key))
            _write_labels(connection, record.key, labels)
            return read_vector(self._found(connection, tenant, vector))

        return await self._database.write(write)

    async def delete(self, tenant: str, vector: str, etag: str) -> None:
        """Deletes a vector that has this etag, or any if it is empty. Raises RESOURCE_NOT_FOUND or
        ETAG_MISMATCH."""

        def write(connection: sa.Connection) -> None:
            record = self._found(connection, tenant, vector, etag)
            connection.execute(vectors.delete().where(vectors.c.key == record.key))
            used = sa.exists().where(vectors.c.content_sha256 == contents.c.sha256)
            connection.execute(
                contents.delete().where(contents.c.sha256 == record.content_sha256, ~used)
            )

        await self._database.write(write)

    async def _read_shared(self, tenant: str, ids: Collection[str]) -> Mapping[str, _Found]:
        """Of what several calls name that which is there, up to `_SHARED_BYTES`."""

        def read(connection: sa.Connection) -> Mapping[str, _Found]:
            found: dict[str, _Found] = {}
            room = _SHARED_BYTES
            for stored in self._read_vectors(connection, tenant, ids):
                room -= stored.size_bytes
                if room < 0:
                    break
                elements = self._read_contents(connection, stored.content_sha256)
                if elements is not None:
                    found[stored.id] = stored, elements
            return found

        return await self._database.read(read)

    def _read_own(
        self, connection: sa.Connection, tenant: str, ids: Mapping[str, FieldPath]
    ) -> Mapping[str, _Found]:
        """All that a call names."""
        there = {each.id: each for each in self._read_vectors(connection, tenant, ids)}
        for each, field in ids.items():
            if each not in there:
                raise self._unknown(connection, tenant, each, field)
        self._check_size(there.values(), ids)
        elements: dict[bytes, bytes] = {}
        for stored in there.values():
            sha256 = stored.content_sha256
            numbers = elements.get(sha256) or self._read_contents(connection, sha256)
            if numbers is None:  # It was deleted since the first statement.
                raise self._unknown(connection, tenant, stored.id, ids[stored.id])
            elements[sha256] = numbers
        return {each: (stored, elements[stored.content_sha256]) for each, stored in there.items()}

    def _read_vectors(
        self, connection: sa.Connection, tenant: str, ids: Collection[str]
    ) -> Sequence[StoredVector]:
        found = connection.execute(self._select(tenant).where(vectors.c.id.in_(ids))).all()
        return [read_vector(record) for record in found]

    def _select(self, tenant: str) -> "sa.Select[Any]":
        return sa.select(vectors).where(
            vectors.c.tenant == tenant, vectors.c.model_id == self._model_id
        )

    def _row(self, connection: sa.Connection, tenant: str, vector: str) -> "sa.Row[Any] | None":
        return connection.execute(self._select(tenant).where(vectors.c.id == vector)).first()

    def _found(
        self, connection: sa.Connection, tenant: str, vector: str, etag: str = ""
    ) -> "sa.Row[Any]":
        record = self._row(connection, tenant, vector)
        if record is None:
            raise self._unknown(connection, tenant, vector, ("name",))
        if etag and record.etag != etag:
            raise ActserveError(
                Reason.ETAG_MISMATCH,
                f"the steering vector {vector!r} has changed since its etag was read; get it "
                "again, and make the change to that",
                field=("etag",),
                metadata={"resource_name": self._name(vector)},
            )
        return record

    def _made(
        self, connection: sa.Connection, tenant: str, request: MakingRequest
    ) -> StoredVector | None:
        record = connection.execute(
            self._select(tenant).where(vectors.c.request_id == request.id)
        ).first()
        if record is None:
            return None
        if bytes(record.request_sha256) != request.sha256:
            raise ActserveError(
                Reason.REQUEST_ID_REUSED,
                f"another request had the request_id {request.id!r}, and made the steering vector "
                f"{record.id!r}; choose a new one for every new request, such as a UUID",
                field=("request_id",),
                metadata={"request_id": request.id},
            )
        return read_vector(record)

    def _unknown(
        self, connection: sa.Connection, tenant: str, vector: str, field: FieldPath
    ) -> ActserveError:
        """There is no such vector; near ids of the tenant are told."""
        alike = sa.func.substr(vectors.c.id, 1, 1) == vector[:1]
        select = sa.select(vectors.c.id).where(
            vectors.c.tenant == tenant, vectors.c.model_id == self._model_id
        )
        select = select.order_by(sa.case((alike, 0), else_=1), vectors.c.id).limit(_LOOKED_AT)
        known = connection.execute(select).scalars().all()
        hint = "create it, or list those that are there"
        if near := difflib.get_close_matches(vector, known, _NEAR):
            hint = f"did you mean {' or '.join(map(repr, near))}?"
        return not_found(self._name(vector), field, hint)

    def _check_room(self, connection: sa.Connection, tenant: str, wanted: int) -> None:
        quota, whose = self._quota, account(tenant)
        share = quota.tenant_share if whose else 1.0
        own_limit = quota.rules(whose).max_steering_vectors
        max_vectors = smaller(int(quota.max_vectors * share), own_limit)
        max_bytes = int(quota.max_bytes * share)
        held = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(vectors.c.size_bytes), 0))
        count, stored = map(int, connection.execute(held).one())
        own_count, own = map(int, connection.execute(held.where(vectors.c.account == whose)).one())
        # Of what others store nothing is told but that there is no room.
        if own_count >= max_vectors:
            problem = f"{own_count} steering vectors are stored, and at most {max_vectors} may be"
        elif own + wanted > max_bytes:
            problem = (
                f"this steering vector takes {wanted} bytes, and those that are stored take {own}, "
                f"but they may take at most {max_bytes}"
            )
        elif count >= quota.max_vectors or stored + wanted > quota.max_bytes:
            problem = "other tenants leave no room for another steering vector now"
        else:
            return
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{problem}; delete some that are stored, or ask the server's operator for more",
            metadata={"bytes": wanted, "stored_bytes": own, "limit": max_bytes},
        )

    def _check_size(self, stored: Iterable[StoredVector], ids: Mapping[str, FieldPath]) -> None:
        """Whether a call may work with all that it names."""
        wanted = sum({each.content_sha256: each.size_bytes for each in stored}.values())
        limit = self._copies.max_own_bytes
        if wanted > limit:
            raise ActserveError(
                Reason.TOO_MANY_ROWS,
                f"the steering vectors that are named take {wanted} bytes, but those of a call may "
                f"take at most {limit}; name fewer",
                field=next(iter(ids.values())),
                metadata={"bytes": wanted, "limit": limit},
            )

    def _read_contents(self, connection: sa.Connection, sha256: bytes) -> bytes | None:
        """The elements of that hash; None if they are not there."""
        elements = self._contents.get(sha256)
        if elements is None:
            select = sa.select(contents.c.elements).where(contents.c.sha256 == sha256)
            found = connection.execute(select).scalar_one_or_none()
            if found is None:
                return None
            elements = bytes(found)
            if hashlib.sha256(elements).digest() != sha256:
                raise ActserveError(
                    Reason.INTERNAL,
                    "the elements of a stored steering vector are not what was stored; restore the "
                    "database from a backup, or delete the vector",
                )
            self._contents.put(sha256, elements)
        return elements

    def _loaded(self, stored: StoredVector, elements: bytes) -> LoadedVector:
        def view() -> np.ndarray:
            return np.frombuffer(elements, "<f4").reshape(len(stored.rows), stored.width)

        return LoadedVector(stored=stored, elements=self._copies.make(len(elements), view))

    def _name(self, vector: str) -> str:
        return f"models/{self._model_id}/steeringVectors/{vector}"


def not_found(name: str, field: FieldPath, hint: str) -> ActserveError:
    """There is no vector of that name."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no steering vector {name[:200]!r}; {hint}",
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def _exists(model_id: str, vector: str) -> ActserveError:
    name = f"models/{model_id}/steeringVectors/{vector}"
    return ActserveError(
        Reason.RESOURCE_EXISTS,
        f"there is a steering vector {vector!r} already; choose another id, or delete it",
        field=("steering_vector_id",),
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
    )


def _write_labels(connection: sa.Connection, vector: int, labels: Mapping[str, str]) -> None:
    if labels:
        connection.execute(
            label_rows.insert(),
            [{"vector": vector, "key": key, "value": value} for key, value in labels.items()],
        )


def _free_id() -> str:
    """One that nobody has: 2^80 possibilities do not meet."""
    return f"vector-{secrets.token_hex(10)}"


def _new_etag() -> str:
    return secrets.token_hex(8)
