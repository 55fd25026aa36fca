"""The asyncio client: `Client` with `await`."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from actserve._aio_explainer import AsyncExplainer
from actserve._channel import model_name
from actserve.events import Event
from actserve.kept import Kept, kept_from_proto, kept_name
from actserve.means import LabelMeans
from actserve.models import Model, model_from_proto
from actserve.options import FetchOptions, GenerateOptions, RunOptions, StreamOptions
from actserve.positions import Positions
from actserve.projections import Projection
from actserve.prompts import P, Prompt, Prompts
from actserve.readouts import Reduction
from actserve.results import Activations, Generation, Tokenized
from actserve.sites import SiteLike
from actserve.steering import Intervention
from actserve.tensors import Float32Array
from actserve.v1 import (
    explanation_service_pb2,
    kept_activations_service_pb2,
    model_service_pb2,
)
from actserve.weights import HeadMatrices, TokenMatrix


class AsyncClient(AsyncExplainer):
    """`Client` with `await`: the same arguments, results and errors.

    Belongs to the event loop that first uses it. Cancelling a task cancels its calls.
    """

    @overload
    async def fetch(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        **options: Unpack[FetchOptions],
    ) -> Activations: ...
    @overload
    async def fetch(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        **options: Unpack[FetchOptions],
    ) -> list[Activations]: ...
    async def fetch(
        self,
        prompt: Any,
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        """What is captured of a prompt, or of each of a list of prompts; see `Client.fetch`."""
        job = self._connection.jobs.fetch(prompt, sites, **options)
        return await self._run(job, timeout, progress)

    async def fetch_means(
        self,
        prompts: Prompts[P],
        labels: Sequence[str],
        sites: SiteLike | Iterable[SiteLike],
        *,
        positions: Positions = "all",
        reduce: Reduction = "mean",
        projection: Projection | None = None,
        steer: Intervention | Iterable[Intervention] = (),
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> dict[str, LabelMeans]:
        """The mean rows of the prompts of each label; see `Client.fetch_means`."""
        job = self._connection.jobs.fetch_means(
            prompts,
            labels,
            sites,
            steer,
            positions=positions,
            reduce=reduce,
            projection=projection,
        )
        return await self._run(job, timeout, progress)

    @overload
    async def generate(
        self, prompt: Prompt, *, n: None = None, **options: Unpack[GenerateOptions]
    ) -> Generation: ...
    @overload
    async def generate(
        self, prompt: Prompt, *, n: int, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    @overload
    async def generate(
        self, prompt: Prompts[P], *, n: None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    @overload
    async def generate(
        self, prompt: Prompts[P], *, n: int, **options: Unpack[GenerateOptions]
    ) -> list[list[Generation]]: ...
    async def generate(
        self,
        prompt: Any,
        *,
        n: int | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[StreamOptions],
    ) -> Any:
        """A continuation of a prompt, or of each of a list of prompts; see `Client.generate`."""
        job = self._connection.jobs.generate(prompt, n, **options)
        return await self._run(job, timeout, progress)

    def stream(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[StreamOptions],
    ) -> AsyncGenerator[Event, None]:
        """The events of a generation while it runs; see `Client.stream`.

        Leaving an `async for` loop early cancels the call soon; `contextlib.aclosing` cancels it
        at once.
        """
        call = self._connection.jobs.generate_call(prompt, n, keep_captured=False, **options)
        return self._events(call, timeout)

    @overload
    async def tokenize(self, prompt: Prompt, *, timeout: float | None = ...) -> Tokenized: ...
    @overload
    async def tokenize(
        self, prompt: Prompts[P], *, timeout: float | None = ...
    ) -> list[Tokenized]: ...
    async def tokenize(self, prompt: Any, *, timeout: float | None = None) -> Any:
        """A prompt as the model would see it, or each of a list of prompts, in order."""
        return await self._run(self._connection.jobs.tokenize(prompt), timeout, progress=False)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """The served models, by name."""
        pages = await self._pages("ListModels", model_service_pb2.ListModelsRequest(), timeout)
        models = [model for page in pages for model in page.models]
        nlas = await self._nlas("models/-", timeout)
        return [model_from_proto(model, nlas) for model in models]

    async def model(self, model_id: str, *, timeout: float | None = None) -> Model:
        """One model. Raises `NotFound`."""
        request = model_service_pb2.GetModelRequest(name=model_name(model_id))
        model = (await self._response("GetModel", request, timeout)).model
        return model_from_proto(model, await self._nlas(model.name, timeout))

    async def _nlas(self, parent: str, timeout: float | None) -> list[explanation_service_pb2.Nla]:
        request = explanation_service_pb2.ListNlasRequest(parent=parent)
        pages = await self._pages("ListNlas", request, timeout)
        return [nla for page in pages for nla in page.nlas]

    async def token_rows(
        self,
        matrix: TokenMatrix,
        token_ids: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """Rows of the embedding or of the unembedding; see `Client.token_rows`."""
        job = self._connection.weight_jobs.token_rows(matrix, token_ids)
        return await self._run(job, timeout, progress=False)

    async def head_matrices(
        self,
        layer: int,
        heads: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> list[HeadMatrices]:
        """What some heads of a layer compute with; see `Client.head_matrices`."""
        job = self._connection.weight_jobs.head_matrices(layer, heads)
        return await self._run(job, timeout, progress=False)

    async def kept(self, name: str, *, timeout: float | None = None) -> Kept:
        """What the server keeps under a name, as `activations.kept` says it. Raises `NotFound` once
        it has expired or was deleted."""
        request = kept_activations_service_pb2.GetKeptActivationsRequest(name=kept_name(name))
        response = await self._response("GetKeptActivations", request, timeout)
        return kept_from_proto(response.kept_activations)

    async def list_kept(self, *, timeout: float | None = None) -> list[Kept]:
        """See `Client.list_kept`."""
        request = kept_activations_service_pb2.ListKeptActivationsRequest()
        pages = await self._pages("ListKeptActivations", request, timeout)
        return [kept_from_proto(kept) for page in pages for kept in page.kept_activations]

    async def delete_kept(self, name: str, *, timeout: float | None = None) -> None:
        """Frees what the server keeps under a name before it expires. Raises `NotFound`."""
        request = kept_activations_service_pb2.DeleteKeptActivationsRequest(name=kept_name(name))
        await self._response("DeleteKeptActivations", request, timeout)
