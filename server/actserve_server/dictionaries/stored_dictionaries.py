"""Dictionaries that tenants have uploaded: what is said of them, and their matrices in pieces.

They lie in the database, so that replicas share them. What is being uploaded counts against quotas
from its beginning, and is deleted when no chunk comes for an hour.
"""

import difflib
import hashlib
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from actserve_server.dictionaries.dictionary import (
    Dictionary,
    DictionaryCheck,
    DictionaryMatrices,
)
from actserve_server.dictionaries.dictionary_records import (
    put_together,
    read_dictionary,
    read_matrices,
    read_upload,
    write_check,
    write_description,
    write_matrices,
)
from actserve_server.dictionaries.uploads import (
    EXPIRE_S,
    PIECE_BYTES,
    MatrixForm,
    MatrixRole,
    Upload,
    float32_bytes,
    stored_bytes,
    touched,
)
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.making_requests import MakingRequest
from actserve_server.domain.principals import account
from actserve_server.domain.tenant_rules import RulesOf, no_rules, smaller
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.fair_threads import off_loop
from actserve_server.storage.database import Database
from actserve_server.storage.tables import dictionaries, dictionary_pieces

RESOURCE_TYPE = "actserve.v1.Dictionary"
UPLOAD_TYPE = "actserve.v1.DictionaryUpload"

_READ_PIECES = 16
"""That are read from the database at once."""
_LOOKED_AT = 1000
"""Ids among which near ones are looked for."""
_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryQuota:
    """What is stored at most, over all tenants; one that has a name stores a share of it."""

    max_dictionaries: int
    max_bytes: int
    """Zero where nobody may upload any."""
    tenant_share: float = 1.0
    rules: RulesOf = no_rules


@dataclass(frozen=True, slots=True)
class StoredDictionary:
    """A dictionary whose upload is finished, and what is needed to use it."""

    about: Dictionary
    float32_bytes: int


class StoredDictionaries:
    """The uploaded dictionaries of one model. Every method raises STORE_UNREACHABLE."""

    def __init__(self, database: Database, model_id: str, quota: DictionaryQuota) -> None:
        self._database = database
        self._model_id = model_id
        self._quota = quota

    # What is there.

    async def find(self, tenant: str, ids: Collection[str]) -> Sequence[Dictionary]:
        """Those of these ids that are there."""
        return [each.about for each in await self.records(tenant, ids)]

    async def records(self, tenant: str, ids: Collection[str]) -> Sequence[StoredDictionary]:
        """The same, with what they take."""
        select = self._finished(tenant).where(dictionaries.c.id.in_(ids))
        found = await self._database.read(lambda connection: connection.execute(select).all())
        return [
            StoredDictionary(read_dictionary(each), float32_bytes(read_matrices(each)))
            for each in found
        ]

    async def list(self, tenant: str, after: str, count: int) -> Sequence[Dictionary]:
        """The first by id that come after this one."""
        select = self._finished(tenant).where(dictionaries.c.id > after)
        select = select.order_by(dictionaries.c.id).limit(count)
        found = await self._database.read(lambda connection: connection.execute(select).all())
        return [read_dictionary(each) for each in found]

    async def ids(self, tenant: str) -> Sequence[str]:
        """Some of those that are there."""
        select = sa.select(dictionaries.c.id).where(
            dictionaries.c.tenant == tenant,
            dictionaries.c.model_id == self._model_id,
            dictionaries.c.finished.is_(True),
        )
        select = select.order_by(dictionaries.c.id).limit(_LOOKED_AT)
        return await self._database.read(
            lambda connection: list(connection.execute(select).scalars())
        )

    async def delete(self, tenant: str, dictionary: str, etag: str) -> None:
        """Deletes the dictionary that has this etag; does nothing if it is gone."""
        await self._database.write(
            lambda connection: connection.execute(
                dictionaries.delete().where(
                    dictionaries.c.tenant == tenant,
                    dictionaries.c.model_id == self._model_id,
                    dictionaries.c.id == dictionary,
                    dictionaries.c.etag == etag,
                )
            )
        )

    async def matrices(
        self, tenant: str, about: Dictionary, field: FieldPath
    ) -> DictionaryMatrices:
        """The matrices of a dictionary that is there. Raises RESOURCE_NOT_FOUND if it was deleted
        meanwhile."""
        select = self._finished(tenant).where(
            dictionaries.c.id == about.id, dictionaries.c.etag == about.etag
        )
        record = await self._database.read(lambda connection: connection.execute(select).first())
        if record is None:
            raise unknown(self._model_id, about.id, (), field)
        matrices, sha256 = await self._read(record, field)
        if sha256 != bytes(record.content_sha256):
            raise ActserveError(
                Reason.INTERNAL,
                f"the matrices of the dictionary {about.id!r} are not what was stored; restore the "
                "database from a backup, or delete the dictionary",
                field=field,
            )
        return matrices

    # What is uploaded.

    async def begin(
        self,
        tenant: str,
        about: Dictionary,
        matrices: Sequence[MatrixForm],
        request: MakingRequest,
    ) -> Upload:
        """Reserves the name and the room of a dictionary, or returns what an equal request has
        begun. The id of `about` may be empty.

        Raises RESOURCE_EXISTS, REQUEST_ID_REUSED or STORE_QUOTA_EXCEEDED, and reserves nothing.
        """
        size = stored_bytes(matrices)

        def write(connection: sa.Connection) -> Upload:
            _delete_expired(connection)
            if (begun := self._begun(connection, tenant, request)) is not None:
                return read_upload(begun)
            taken = about.id or f"dictionary-{secrets.token_hex(10)}"
            here = self._select(tenant).where(dictionaries.c.id == taken)
            if connection.execute(here).first() is not None:
                raise exists(self._model_id, taken)
            self._check_room(connection, tenant, size)
            now = time.time_ns() // 1000
            connection.execute(
                dictionaries.insert(),
                {
                    "tenant": tenant,
                    "account": account(tenant),
                    "model_id": self._model_id,
                    "id": taken,
                    "upload": f"upload-{secrets.token_hex(10)}",
                    "description": write_description(about),
                    "matrices": write_matrices(matrices),
                    "received_bytes": [0] * len(matrices),
                    "finished": False,
                    "size_bytes": size,
                    "content_sha256": b"",
                    "reconstruction": None,
                    "create_time_us": now,
                    "expire_time_us": now + EXPIRE_S * 1_000_000,
                    "etag": secrets.token_hex(8),
                    "request_id": request.id,
                    "request_sha256": request.sha256,
                },
            )
            return read_upload(connection.execute(here).one())

        return await self._database.write(write)

    async def write_chunk(
        self, tenant: str, dictionary: str, upload: str, index: int, offset: int, content: bytes
    ) -> Upload:
        """Writes bytes of a matrix of an upload that goes on. Raises RESOURCE_NOT_FOUND, and
        FIELD_INVALID for a matrix or bytes that are not of it."""

        def write(connection: sa.Connection) -> Upload:
            record = self._upload(connection, tenant, dictionary, upload, finished=False)
            matrices, received = read_matrices(record), list(record.received_bytes)
            if index >= len(matrices):
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"matrix_index is {index}, but the upload has {len(matrices)} matrices, from 0",
                    field=("matrix_index",),
                    metadata={"matrix_index": index, "matrices": len(matrices)},
                )
            _check_place(offset, len(content), received[index], matrices[index].nbytes)
            for piece, within, start, end in touched(offset, len(content)):
                _write_piece(connection, record.key, index, piece, within, content[start:end])
            received[index] = max(received[index], offset + len(content))
            expires = time.time_ns() // 1000 + EXPIRE_S * 1_000_000
            connection.execute(
                dictionaries.update()
                .where(dictionaries.c.key == record.key)
                .values(received_bytes=received, expire_time_us=expires)
            )
            return Upload(
                dictionary=dictionary,
                id=upload,
                matrices=matrices,
                received_bytes=tuple(received),
                expires_at_us=expires,
            )

        return await self._database.write(write)

    async def complete(
        self, tenant: str, dictionary: str, upload: str
    ) -> tuple[Dictionary, int] | Dictionary:
        """What an upload has stored, if it is finished; else what it will be, and the bytes that
        its matrices take as float32. Raises RESOURCE_NOT_FOUND or UPLOAD_INCOMPLETE."""
        record = await self._database.read(
            lambda connection: self._upload(connection, tenant, dictionary, upload)
        )
        if record.finished:
            return read_dictionary(record)
        matrices = read_matrices(record)
        for index, (matrix, received) in enumerate(
            zip(matrices, record.received_bytes, strict=True)
        ):
            if received < matrix.nbytes:
                raise ActserveError(
                    Reason.UPLOAD_INCOMPLETE,
                    f"{received} of the {matrix.nbytes} bytes of matrix {index} ({matrix.role}) "
                    "have come; send the rest, then finish",
                    metadata={
                        "matrix_index": index,
                        "received_bytes": received,
                        "expected_bytes": matrix.nbytes,
                    },
                )
        return read_dictionary(record), float32_bytes(matrices)

    async def uploaded(
        self, tenant: str, dictionary: str, upload: str
    ) -> tuple[DictionaryMatrices, bytes, int]:
        """The matrices of an upload that is complete, the SHA-256 of their bytes, and when it
        expires, which each chunk changes. Raises TENSOR_NOT_FINITE."""
        record = await self._database.read(
            lambda connection: self._upload(connection, tenant, dictionary, upload)
        )
        return *await self._read(record, ("upload",)), record.expire_time_us

    async def finish(
        self,
        tenant: str,
        dictionary: str,
        upload: str,
        sha256: bytes,
        expires_at_us: int,
        check: DictionaryCheck | None,
    ) -> Dictionary:
        """Makes a dictionary of an upload whose bytes had this hash when it expired then. Raises
        RESOURCE_NOT_FOUND, or UPLOAD_INCOMPLETE if a chunk has come since."""

        def write(connection: sa.Connection) -> Dictionary:
            record = self._upload(connection, tenant, dictionary, upload)
            if not record.finished:
                if record.expire_time_us != expires_at_us:
                    raise ActserveError(
                        Reason.UPLOAD_INCOMPLETE,
                        "a chunk came while the upload was being finished; finish it again",
                    )
                connection.execute(
                    dictionaries.update()
                    .where(dictionaries.c.key == record.key)
                    .values(
                        finished=True,
                        content_sha256=sha256,
                        reconstruction=write_check(check),
                        create_time_us=time.time_ns() // 1000,
                        expire_time_us=0,
                    )
                )
                record = self._upload(connection, tenant, dictionary, upload)
            return read_dictionary(record)

        return await self._database.write(write)

    async def expire(self) -> None:
        """Deletes uploads for which no chunk came in time."""
        await self._database.write(_delete_expired)

    def _select(self, tenant: str) -> "sa.Select[Any]":
        return sa.select(dictionaries).where(
            dictionaries.c.tenant == tenant, dictionaries.c.model_id == self._model_id
        )

    def _finished(self, tenant: str) -> "sa.Select[Any]":
        return self._select(tenant).where(dictionaries.c.finished.is_(True))

    def _upload(
        self,
        connection: sa.Connection,
        tenant: str,
        dictionary: str,
        upload: str,
        *,
        finished: bool | None = None,
    ) -> "sa.Row[Any]":
        record = connection.execute(
            self._select(tenant).where(
                dictionaries.c.id == dictionary, dictionaries.c.upload == upload
            )
        ).first()
        if (
            record is None
            or (finished is not None and record.finished is not finished)
            or not (record.finished or record.expire_time_us > time.time_ns() // 1000)
        ):
            raise no_upload(f"models/{self._model_id}/dictionaries/{dictionary}/uploads/{upload}")
        return record

    def _begun(
        self, connection: sa.Connection, tenant: str, request: MakingRequest
    ) -> "sa.Row[Any] | None":
        record = connection.execute(
            self._select(tenant).where(dictionaries.c.request_id == request.id)
        ).first()
        if record is not None and bytes(record.request_sha256) != request.sha256:
            raise ActserveError(
                Reason.REQUEST_ID_REUSED,
                f"another request had the request_id {request.id!r}, and began the dictionary "
                f"{record.id!r}; choose a new one for every new request, such as a UUID",
                field=("request_id",),
                metadata={"request_id": request.id},
            )
        return record

    def _check_room(self, connection: sa.Connection, tenant: str, wanted: int) -> None:
        quota, whose = self._quota, account(tenant)
        share = quota.tenant_share if whose else 1.0
        most = smaller(int(quota.max_dictionaries * share), quota.rules(whose).max_dictionaries)
        max_bytes = int(quota.max_bytes * share)
        table = dictionaries.c
        held = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(table.size_bytes), 0))
        count, stored = map(int, connection.execute(held).one())
        own_count, own = map(int, connection.execute(held.where(table.account == whose)).one())
        # Of what others store nothing is told but that there is no room.
        if quota.max_bytes == 0:
            raise ActserveError(
                Reason.STORE_QUOTA_EXCEEDED,
                "this server lets nobody upload dictionaries: its operator has to start it with "
                "--max-dictionary-bytes above 0",
                metadata={"bytes": wanted, "stored_bytes": own, "limit": 0},
            )
        if own_count >= most:
            problem = f"{own_count} dictionaries are stored or uploaded, and at most {most} may be"
        elif own + wanted > max_bytes:
            problem = (
                f"this dictionary takes {wanted} bytes, and those that are stored or uploaded take "
                f"{own}, but they may take at most {max_bytes}"
            )
        elif count >= quota.max_dictionaries or stored + wanted > quota.max_bytes:
            problem = "other tenants leave no room for another dictionary now"
        else:
            return
        raise ActserveError(
            Reason.STORE_QUOTA_EXCEEDED,
            f"{problem}; delete some that are stored, or ask the server's operator for more",
            metadata={"bytes": wanted, "stored_bytes": own, "limit": max_bytes},
        )

    async def _read(
        self, record: "sa.Row[Any]", field: FieldPath
    ) -> tuple[DictionaryMatrices, bytes]:
        about, digest = read_dictionary(record), hashlib.sha256()
        parts: dict[tuple[MatrixRole, int], np.ndarray] = {}
        for index, form in enumerate(read_matrices(record)):
            values = np.empty(form.shape, np.float32)
            flat = values.reshape(-1)
            each = PIECE_BYTES // form.element_type.itemsize
            for first in range(0, form.pieces, _READ_PIECES):
                last = min(first + _READ_PIECES, form.pieces)
                found = await self._pieces(record.key, index, first, last)
                if len(found) != last - first:  # It was deleted meanwhile.
                    raise unknown(self._model_id, about.id, (), field)
                await off_loop(_decode, found, form, flat, first * each, digest)
            await off_loop(_check_finite, values, index, form, field)
            parts[form.role, form.target] = values
        return put_together(about, parts), digest.digest()

    async def _pieces(self, key: int, matrix: int, first: int, last: int) -> Sequence[bytes]:
        columns = dictionary_pieces.c
        select = (
            sa.select(columns.content)
            .where(
                columns.dictionary == key,
                columns.matrix == matrix,
                columns.piece >= first,
                columns.piece < last,
            )
            .order_by(columns.piece)
        )
        return await self._database.read(
            lambda connection: [bytes(each) for each in connection.execute(select).scalars()]
        )


def unknown(
    model_id: str, dictionary: str, known: Iterable[str], field: FieldPath
) -> ActserveError:
    """There is no such dictionary; near ones of `known` are told."""
    hint = "upload it, list those that are there, or start the server with --dictionary"
    if near := difflib.get_close_matches(dictionary, [*known], _NEAR):
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    return not_found(f"models/{model_id}/dictionaries/{dictionary}", field, hint)


def not_found(name: str, field: FieldPath, hint: str) -> ActserveError:
    """There is no dictionary of that name."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no dictionary {name[:200]!r}; {hint}",
        field=field,
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name[:200]},
    )


def no_upload(name: str) -> ActserveError:
    """There is no upload of that name that goes on."""
    return ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"there is no upload {name[:300]!r} that goes on; it is finished, or no chunk came for "
        f"{EXPIRE_S} s; make BeginUpload again, which says how far it has come",
        field=("upload",),
        metadata={"resource_type": UPLOAD_TYPE, "resource_name": name[:300]},
    )


def exists(model_id: str, dictionary: str) -> ActserveError:
    """The name is taken."""
    return ActserveError(
        Reason.RESOURCE_EXISTS,
        f"there is a dictionary {dictionary!r} already, or it is being uploaded; choose another "
        "id, or delete it",
        field=("dictionary_id",),
        metadata={
            "resource_type": RESOURCE_TYPE,
            "resource_name": f"models/{model_id}/dictionaries/{dictionary}",
        },
    )


def _delete_expired(connection: sa.Connection) -> None:
    connection.execute(
        dictionaries.delete().where(
            dictionaries.c.finished.is_(False),
            dictionaries.c.expire_time_us <= time.time_ns() // 1000,
        )
    )


def _check_place(offset: int, size: int, received: int, matrix_bytes: int) -> None:
    if offset > received:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the chunk begins at byte {offset}, but only {received} bytes have come before it; "
            "begin there",
            field=("offset",),
            metadata={"offset": offset, "received_bytes": received},
        )
    if offset + size > matrix_bytes:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the chunk ends at byte {offset + size}, but the matrix has {matrix_bytes} bytes",
            field=("content",),
            metadata={"end": offset + size, "expected_bytes": matrix_bytes},
        )


def _write_piece(
    connection: sa.Connection, key: int, matrix: int, piece: int, within: int, part: bytes
) -> None:
    """Writes bytes into one piece, from `within` on, which is not beyond its end."""
    columns = dictionary_pieces.c
    here = (columns.dictionary == key) & (columns.matrix == matrix) & (columns.piece == piece)
    before = connection.execute(sa.select(columns.content).where(here)).scalar_one_or_none()
    if before is None:
        connection.execute(
            dictionary_pieces.insert(),
            {"dictionary": key, "matrix": matrix, "piece": piece, "content": part},
        )
        return
    before = bytes(before)
    whole = before[:within] + part + before[within + len(part) :]
    connection.execute(dictionary_pieces.update().where(here).values(content=whole))


def _decode(
    pieces: Sequence[bytes],
    form: MatrixForm,
    values: np.ndarray,
    start: int,
    digest: "hashlib._Hash",
) -> None:
    """Writes the numbers of pieces into `values`, from `start` on."""
    for piece in pieces:
        digest.update(piece)
        numbers = to_float32(np.frombuffer(piece, form.element_type.storage), form.element_type)
        values[start : start + len(numbers)] = numbers
        start += len(numbers)


def _check_finite(values: np.ndarray, index: int, form: MatrixForm, field: FieldPath) -> None:
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"element {at} of matrix {index} ({form.role}) is not finite; send it again",
            field=field,
            metadata={"index": at},
        )
