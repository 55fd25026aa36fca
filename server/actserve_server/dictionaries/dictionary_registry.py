"""The dictionaries that tenants can name: those that the operator has loaded, and their own.

What a tenant has stored does not exist for others. `stored_dictionaries.py` keeps it, and
`feature_labels.py` what features stand for. Here all are found by name, and their matrices are had
when something uses them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from actserve_server.dictionaries.dictionary import (
    Dictionary,
    DictionaryCheck,
    LoadedDictionary,
)
from actserve_server.dictionaries.dictionary_loading import DictionaryError, ServerDictionary
from actserve_server.dictionaries.dictionary_memory import DictionaryMemory, Packed
from actserve_server.dictionaries.feature_labels import FeatureLabels
from actserve_server.dictionaries.stored_dictionaries import StoredDictionaries, unknown
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.engine.fair_threads import off_loop

MAX_NAMED = 16
"""Dictionaries that one call may name."""

_Key = tuple[str, str, str]
"""Of what is remembered: the tenant, empty for a dictionary of the server; id and etag."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    key: _Key
    about: Dictionary
    float32_bytes: int
    server: ServerDictionary | None


class DictionaryRegistry:
    """The dictionaries of one model."""

    def __init__(
        self,
        model_id: str,
        stored: StoredDictionaries,
        labels: FeatureLabels,
        memory: DictionaryMemory,
    ) -> None:
        self._model_id = model_id
        self.stored = stored
        self.labels = labels
        self._memory = memory
        self._of_server: Mapping[str, ServerDictionary] = {}
        self._loading = asyncio.Lock()
        """Held while matrices are read: one dictionary at a time, and none twice."""

    def serve(self, loaded: Sequence[ServerDictionary]) -> None:
        """Has every tenant find these, before its own of the same name."""
        self._of_server = {each.about.id: each for each in loaded}

    @property
    def of_server(self) -> Sequence[Dictionary]:
        return [each.about for each in self._of_server.values()]

    @property
    def held_bytes(self) -> int:
        """Memory that dictionaries in use take. Any thread may ask."""
        return self._memory.told_bytes

    def is_of_server(self, dictionary: str) -> bool:
        return dictionary in self._of_server

    async def get(self, tenant: str, dictionary: str, field: FieldPath = ("name",)) -> Dictionary:
        """The dictionary of that id. Raises RESOURCE_NOT_FOUND or STORE_UNREACHABLE."""
        if (of_server := self._of_server.get(dictionary)) is not None:
            version = await self.labels.version(tenant, dictionary)
            return _with_version(of_server.about, version)
        found = await self.stored.find(tenant, [dictionary])
        if not found:
            raise await self._unknown(tenant, dictionary, field)
        return _with_version(found[0], await self.labels.version(tenant, dictionary))

    async def list(self, tenant: str, after: str, count: int) -> Sequence[Dictionary]:
        """The first dictionaries by id that come after this one."""
        of_server = [each.about for each in self._of_server.values() if each.about.id > after]
        own = await self.stored.list(tenant, after, count + len(of_server))
        found = [*of_server, *(each for each in own if each.id not in self._of_server)]
        found = sorted(found, key=lambda each: each.id)[:count]
        versions = await self.labels.versions(tenant, [each.id for each in found])
        return [_with_version(each, versions.get(each.id, "")) for each in found]

    async def delete(self, tenant: str, dictionary: str, etag: str) -> None:
        """Deletes a dictionary that has this etag, or any if it is empty, and its labels. Raises
        RESOURCE_NOT_FOUND, ETAG_MISMATCH, or PERMISSION_DENIED for one of the server."""
        if self.is_of_server(dictionary):
            raise ActserveError(
                Reason.PERMISSION_DENIED,
                f"the dictionary {dictionary!r} is the server's own; who starts the server can "
                "leave it out",
                field=("name",),
            )
        about = await self.get(tenant, dictionary)
        check_etag(about, etag, self._model_id)
        await self.stored.delete(tenant, dictionary, about.etag.partition("-")[0])
        await self.labels.forget(tenant, dictionary)

    async def load(
        self, tenant: str, ids: Mapping[str, FieldPath]
    ) -> Mapping[str, LoadedDictionary]:
        """Dictionaries with their matrices, by id. `ids` says of each where a request names it.

        Raises RESOURCE_NOT_FOUND; FIELD_INVALID for more than a call may name; TOO_MANY_ROWS for
        one that is larger than what may be in use, or QUEUE_FULL while others are.
        """
        if len(ids) > MAX_NAMED:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{len(ids)} dictionaries are named; name at most {MAX_NAMED} in a call",
                field=[*ids.values()][MAX_NAMED],
                metadata={"dictionaries": len(ids), "limit": MAX_NAMED},
            )
        own = [each for each in ids if each not in self._of_server]
        stored = {
            each.about.id: each for each in (await self.stored.records(tenant, own) if own else ())
        }
        wanted: dict[str, _Wanted] = {}
        for each, field in ids.items():
            if (server := self._of_server.get(each)) is not None:
                key = ("", each, server.about.etag)
                wanted[each] = _Wanted(key, server.about, server.about.size_bytes, server)
            elif (record := stored.get(each)) is not None:
                key = (tenant, each, record.about.etag)
                wanted[each] = _Wanted(key, record.about, record.float32_bytes, None)
            else:
                raise await self._unknown(tenant, each, field)
        return {each: await self._have(tenant, wanted[each], ids[each]) for each in ids}

    async def finish(
        self,
        tenant: str,
        dictionary: str,
        upload: str,
        check: Callable[[LoadedDictionary], Awaitable[DictionaryCheck | None]],
    ) -> Dictionary:
        """Stores what was uploaded, with what `check` finds of it; or returns what was stored
        before. Raises RESOURCE_NOT_FOUND, UPLOAD_INCOMPLETE, TENSOR_NOT_FINITE, and as `load`."""
        state = await self.stored.complete(tenant, dictionary, upload)
        if isinstance(state, Dictionary):
            return _with_version(state, await self.labels.version(tenant, dictionary))
        about, size = state
        self._memory.take(size, about.id, ("upload",))
        try:
            matrices, sha256, expires = await self.stored.uploaded(tenant, dictionary, upload)
            found = await check(LoadedDictionary(about=about, matrices=matrices))
            return await self.stored.finish(tenant, dictionary, upload, sha256, expires, found)
        finally:
            self._memory.give_back(size)

    async def _have(self, tenant: str, wanted: _Wanted, field: FieldPath) -> LoadedDictionary:
        if (found := self._memory.get(wanted.key)) is not None:
            return found
        async with self._loading:
            if (found := self._memory.get(wanted.key)) is not None:
                return found
            about, size = wanted.about, wanted.float32_bytes
            self._memory.take(size, about.id, field)
            try:
                packed = await self._read(tenant, wanted, field)
            except BaseException:
                self._memory.give_back(size)
                raise
            matrices = self._memory.count_until_gone(packed, size)
            loaded = LoadedDictionary(about=about, matrices=matrices)
            self._memory.put(wanted.key, loaded)
            return loaded

    async def _read(self, tenant: str, wanted: _Wanted, field: FieldPath) -> Packed:
        if wanted.server is None:
            matrices = await self.stored.matrices(tenant, wanted.about, field)
        else:
            try:
                matrices = await off_loop(wanted.server.read)
            except DictionaryError as error:
                raise ActserveError(
                    Reason.INTERNAL, f"a dictionary: {error}", field=field
                ) from None
        return await off_loop(Packed, matrices)

    async def _unknown(self, tenant: str, dictionary: str, field: FieldPath) -> ActserveError:
        known = [*self._of_server, *await self.stored.ids(tenant)]
        return unknown(self._model_id, dictionary, known, field)


def check_etag(about: Dictionary, etag: str, model_id: str) -> None:
    """Raises ETAG_MISMATCH unless it has this etag, or that is empty."""
    if etag and about.etag != etag:
        raise ActserveError(
            Reason.ETAG_MISMATCH,
            f"the dictionary {about.id!r} has changed since its etag was read; get it again, and "
            "make the change to that",
            field=("etag",),
            metadata={"resource_name": f"models/{model_id}/dictionaries/{about.id}"},
        )


def _with_version(about: Dictionary, version: str) -> Dictionary:
    return replace(about, etag=f"{about.etag}-{version}") if version else about
