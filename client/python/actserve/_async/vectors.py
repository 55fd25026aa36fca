"""Vectors: what a server stores by name, and makes from examples and from each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from numpy.typing import ArrayLike

from actserve._async.base import AsyncBase
from actserve._vector_requests import VectorRequests, checked_labels, checked_terms
from actserve.positions import Positions
from actserve.prompts import Prompt
from actserve.sites import SiteLike, parse_sites
from actserve.stored_vectors import (
    Stored,
    StoredVector,
    VectorMethod,
    VectorTerm,
    got_from_proto,
    stored,
    stored_from_proto,
)
from actserve.v1 import steering_vector_service_pb2 as pb


class AsyncVectors:
    """The stored vectors of a model, which belong to the tenant of the client's token.

    A vector is named by its id or by its whole name, or is what a method here returned. What makes
    a vector is safe to try again: it is never made twice. Raises `NotFound` for a name that is not
    there, and `AlreadyExists` for one that is taken.
    """

    def __init__(self, transport: Any, resolved: Any, requests: VectorRequests) -> None:
        self._transport = transport
        self._resolved = resolved
        self._requests = requests

    async def store(
        self,
        name: str,
        vector: Any,
        sites: SiteLike | Iterable[SiteLike] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> StoredVector:
        """Stores a vector.

        - `name`: 1 to 63 lower-case letters, digits and hyphens, from a letter on.
        - `vector`: a `SteeringVector` or several, arrays [width] by site, a `ControlVector` of
          repeng, or rows that the server keeps; or with `sites` an array [width] or [sites, width].
          No row is zero.
        - `labels`: what it is, for people and for `list`.

            client.vectors.store("joy", means["liked"] - means["hated"])
            client.vectors.store("joy", values, "resid_post.12", labels={"concept": "joy"})
        """
        asked = {"sites": None if sites is None else parse_sites(sites)}
        where = (await self._resolved(asked, timeout))["sites"]
        request = self._requests.store(name, vector, where, labels)
        answer = await self._transport.response("CreateSteeringVector", request, timeout)
        return stored_from_proto(answer.steering_vector)

    async def create(
        self,
        name: str,
        positive: Sequence[Prompt] | ArrayLike,
        negative: Sequence[Prompt] | ArrayLike,
        site: SiteLike | Iterable[SiteLike],
        *,
        method: VectorMethod | None = None,
        positions: Positions | None = None,
        labels: Mapping[str, str] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
    ) -> StoredVector:
        """Makes a vector of examples that have something and of others that lack it, and stores it.
        Of several sites it has a row for each, and `ranked()` says which tell the examples apart.

        - `positive`, `negative`: prompts, which the server runs; or rows of the one site, float
          arrays [rows, width].
        - `site`: one, several, or a pattern of layers such as `"resid_post.5:20"`.
        - `method`: "mean_difference" if it is None, "pca", of pairs in order, or
          "logistic_regression".
        - `positions`: which tokens of each prompt count, as the mean of their rows; the last if it
          is None.
        - `adapter`: the LoRA adapter that the prompts run with; the vector's `provenance` tells it.

            joy = client.vectors.create("joy", liked, hated, "resid_post.5:20")
            joy.best.site, joy.best.held_out_auroc
        """
        asked = {"sites": parse_sites(site), "positions": positions}
        asked = await self._resolved(asked, timeout)
        request = self._requests.create(
            name, positive, negative, method=method, labels=labels, adapter=adapter, **asked
        )
        answer = await self._transport.response("MakeSteeringVector", request, timeout)
        return stored_from_proto(answer.steering_vector, ranking=answer.ranking)

    async def combine(
        self,
        name: str,
        terms: Mapping[Any, float] | Iterable[VectorTerm | str | Stored | StoredVector],
        *,
        without: Iterable[VectorTerm | str | Stored | StoredVector] = (),
        norm: float | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> StoredVector:
        """Computes a vector from stored ones, and stores it: the sum of `terms`, less its
        projection onto the span of `without`, scaled to `norm`. Each row is computed by itself.

        - `terms`: coefficients by name; or names, each of which counts once, and `VectorTerm`s.
        - `without`: what the sum is made orthogonal to.
        - `norm`: of each row; as it comes out when None.

            client.vectors.combine("calm", {"joy": 1, "anger": -0.5}, without=["arousal"], norm=1.0)
        """
        asked = {
            "terms": checked_terms(terms, "terms"),
            "without": checked_terms(without, "without"),
        }
        asked = await self._resolved(asked, timeout)
        request = self._requests.combine(name, norm=norm, labels=labels, **asked)
        answer = await self._transport.response("CombineSteeringVectors", request, timeout)
        return stored_from_proto(answer.steering_vector)

    async def get(
        self,
        name: str | Stored | StoredVector,
        *,
        elements: bool = False,
        timeout: float | None = None,
    ) -> StoredVector:
        """One vector, with its elements if they are asked for.

        client.vectors.get("joy", elements=True).vectors()  # a SteeringVector for each site
        """
        whole = await self._whole(name, timeout)
        request = pb.GetSteeringVectorRequest(name=whole, with_elements=elements)
        answer = await self._transport.response("GetSteeringVector", request, timeout)
        return got_from_proto(answer, elements)

    async def update(
        self,
        name: str | Stored | StoredVector,
        labels: Mapping[str, str],
        *,
        etag: str | None = None,
        timeout: float | None = None,
    ) -> StoredVector:
        """Replaces all labels of a vector. With `etag` only if nobody has changed it since: else
        it raises `Conflict`."""
        request = pb.UpdateSteeringVectorRequest(
            name=await self._whole(name, timeout), labels=checked_labels(labels), etag=etag or ""
        )
        answer = await self._transport.response("UpdateSteeringVector", request, timeout)
        return stored_from_proto(answer.steering_vector)

    async def delete(
        self,
        name: str | Stored | StoredVector,
        *,
        etag: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Deletes a vector; runs that use it keep it. `etag` is as for `update`."""
        whole = await self._whole(name, timeout)
        request = pb.DeleteSteeringVectorRequest(name=whole, etag=etag or "")
        await self._transport.response("DeleteSteeringVector", request, timeout)

    async def list(
        self, labels: Mapping[str, str] | None = None, *, timeout: float | None = None
    ) -> AsyncGenerator[StoredVector, None]:
        """The vectors, by name: all, or those that have all of some labels. Pages are asked for as
        they are needed.

            for vector in client.vectors.list({"concept": "joy"}):
                print(vector.id, vector.sites)
        """
        request = pb.ListSteeringVectorsRequest(
            model=self._requests.model, filter=checked_labels(labels)
        )
        async for page in self._transport.pages("ListSteeringVectors", request, timeout):
            for vector in page.steering_vectors:
                yield stored_from_proto(vector)

    async def _whole(self, name: Any, timeout: float | None) -> str:
        """The whole name of a vector."""
        asked = await self._resolved({"vector": stored(name)}, timeout)
        return asked["vector"].whole


class AsyncVectorStore(AsyncBase):
    """Stored vectors."""

    @cached_property
    def vectors(self) -> AsyncVectors:
        """The vectors that the server stores by name.

        joy = client.vectors.create("joy", liked, hated, "resid_post.12")
        client.generate("I think", intervene=Add("resid_post.12", "joy", 4.0))
        """
        requests = VectorRequests(self._connection.model)
        return AsyncVectors(self._transport, self._resolved, requests)
