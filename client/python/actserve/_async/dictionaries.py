"""Dictionaries: sparse autoencoders and transcoders that a server has by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import cached_property
from os import PathLike
from typing import Any

from actserve._async.base import AsyncBase
from actserve._dictionary_requests import LABELS_PER_CALL, Upload, checked_feature_labels
from actserve._names import Named, named
from actserve._progress import reaching
from actserve.dictionaries import (
    DICTIONARIES,
    FeatureLabel,
    StoredDictionary,
    dictionary_from_proto,
    label_from_proto,
)
from actserve.dictionary_matrices import Dictionary
from actserve.v1 import dictionary_service_pb2 as pb


class AsyncDictionaries:
    """The dictionaries of a model: those that the server's operator has loaded, and those that the
    tenant of the client's token has uploaded.

    A dictionary is named by its id or by its whole name, or is what a method here returned. Raises
    `NotFound` for a name that is not there, and `AlreadyExists` for one that is taken.
    """

    def __init__(self, transport: Any, resolved: Any, model: str) -> None:
        self._transport = transport
        self._resolved = resolved
        self._model = model

    async def get(
        self, name: str | Named | StoredDictionary, *, timeout: float | None = None
    ) -> StoredDictionary:
        """One dictionary, without its matrices.

        sae = client.dictionaries.get("smollm2-135m")
        sae.site, sae.features, sae.check.explained
        """
        request = pb.GetDictionaryRequest(name=await self._whole(name, timeout))
        answer = await self._transport.response("GetDictionary", request, timeout)
        return dictionary_from_proto(answer.dictionary)

    async def upload(
        self,
        name: str,
        dictionary: Dictionary | str | PathLike[str] | Any,
        *,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> StoredDictionary:
        """Stores a dictionary, chunk by chunk. If that was cut, the same call goes on where it was,
        in another program too, as long as the server keeps what it has, which is a while.

        - `name`: 1 to 63 lower-case letters, digits and hyphens, from a letter on.
        - `dictionary`: a `Dictionary`; or one of SAELens, as its object or its folder, as
          `Dictionary.from_saelens` takes it.
        - `timeout`: seconds that each call may take; there is one for each chunk.
        - `progress`: a bar on standard error; by default on a terminal, with rich.

            client.dictionaries.upload("mine", "saes/layer-10")
        """
        upload = Upload.of(self._model, name, dictionary)
        begun = await self._transport.response("BeginUpload", upload.begin, timeout)
        received = upload.received(begun)
        with reaching("upload", progress) as reach:
            for matrix, content in enumerate(upload.contents):
                while received[matrix] < len(content):
                    reach(sum(received), upload.size)
                    offset = received[matrix]
                    chunk = upload.chunk(begun, matrix, offset)
                    answer = await self._transport.response("UploadChunk", chunk, timeout)
                    received[matrix] = upload.after(answer, matrix, offset)
            reach(sum(received), upload.size)
        finish = pb.FinishUploadRequest(upload=begun.upload)
        stored = await self._transport.response("FinishUpload", finish, timeout)
        return dictionary_from_proto(stored.dictionary)

    async def delete(
        self,
        name: str | Named | StoredDictionary,
        *,
        etag: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Deletes a dictionary and its labels; runs that use it keep it. With `etag` only if no
        label has changed since: else it raises `Conflict`."""
        whole = await self._whole(name, timeout)
        request = pb.DeleteDictionaryRequest(name=whole, etag=etag or "")
        await self._transport.response("DeleteDictionary", request, timeout)

    async def set_labels(
        self,
        name: str | Named | StoredDictionary,
        labels: Mapping[int, str] | FeatureLabel | Iterable[FeatureLabel],
        *,
        etag: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Says what features stand for; other features keep their labels, and an empty text takes
        one away. Returns the new etag. `etag` is as for `delete`.

        client.dictionaries.set_labels("mine", {123: "rivers", 7: "question marks"})
        """
        found = checked_feature_labels(labels)
        whole, told = await self._whole(name, timeout), etag or ""
        for first in range(0, len(found), LABELS_PER_CALL):
            request = pb.SetFeatureLabelsRequest(
                dictionary=whole,
                labels=[each.to_proto() for each in found[first : first + LABELS_PER_CALL]],
                etag=told if etag else "",
            )
            answer = await self._transport.response("SetFeatureLabels", request, timeout)
            told = answer.etag
        return told

    async def labels(
        self,
        name: str | Named | StoredDictionary,
        containing: str = "",
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[FeatureLabel, None]:
        """What features stand for, by index; of those without a label nothing. Pages are asked for
        as they are needed.

        - `containing`: only labels that hold this text, in any case.

            for label in client.dictionaries.labels("mine", "river"):
                print(label.index, label.label)
        """
        request = pb.ListFeatureLabelsRequest(
            dictionary=await self._whole(name, timeout), page_size=1000, filter=containing
        )
        async for page in self._transport.pages("ListFeatureLabels", request, timeout):
            for label in page.labels:
                yield label_from_proto(label)

    # Last: below it `list` is this method.
    async def list(self, *, timeout: float | None = None) -> AsyncGenerator[StoredDictionary, None]:
        """The dictionaries, by name. Pages are asked for as they are needed.

        for dictionary in client.dictionaries.list():
            print(dictionary.id, dictionary.site, dictionary.features)
        """
        request = pb.ListDictionariesRequest(model=self._model)
        async for page in self._transport.pages("ListDictionaries", request, timeout):
            for dictionary in page.dictionaries:
                yield dictionary_from_proto(dictionary)

    async def _whole(self, name: Any, timeout: float | None) -> str:
        """The whole name of a dictionary."""
        asked = {"dictionary": named(DICTIONARIES, name)}
        return (await self._resolved(asked, timeout))["dictionary"].name


class AsyncDictionaryStore(AsyncBase):
    """Dictionaries by name."""

    @cached_property
    def dictionaries(self) -> AsyncDictionaries:
        """The dictionaries that the server has.

        sae = client.dictionaries.get("smollm2-135m")
        client.generate("I think", intervene=sae.add({123: 40.0}))
        """
        return AsyncDictionaries(self._transport, self._resolved, self._connection.model)
