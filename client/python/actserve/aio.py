"""The asyncio client: `Client` with `await`."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio

from actserve._calls import Call
from actserve._channel import (
    DEFAULT_CONCURRENCY,
    DEFAULT_TARGET,
    STREAMING,
    Connection,
    model_name,
    stubs,
)
from actserve._jobs import Job, Part
from actserve._progress import bar
from actserve.errors import at_prompt, from_rpc
from actserve.events import Event
from actserve.kept import Kept, kept_from_proto, kept_name
from actserve.means import LabelMeans
from actserve.models import Model, model_from_proto
from actserve.options import FetchOptions, GenerateOptions, Reduction, RunOptions, StreamOptions
from actserve.positions import Positions
from actserve.projections import Projection
from actserve.prompts import P, Prompt, Prompts
from actserve.results import Activations, Generation, Tokenized
from actserve.sites import SiteLike
from actserve.steering import Intervention
from actserve.v1 import kept_activations_service_pb2, model_service_pb2

T = TypeVar("T")


class AsyncClient:
    """`Client` with `await`: the same arguments, results and errors.

    Belongs to the event loop that first uses it. Cancelling a task cancels its calls.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str | None = None,
        tls: bool | grpc.ChannelCredentials | None = None,
        token: str | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        self._connection = Connection.of(
            target,
            model=model,
            tls=tls,
            token=token,
            timeout=timeout,
            metadata=metadata,
            concurrency=concurrency,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        await self._channel.close()

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
        models: list[Model] = []
        request = model_service_pb2.ListModelsRequest()
        while True:
            page = await self._response("ListModels", request, timeout)
            models += map(model_from_proto, page.models)
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def model(self, model_id: str, *, timeout: float | None = None) -> Model:
        """One model. Raises `NotFound`."""
        request = model_service_pb2.GetModelRequest(name=model_name(model_id))
        return model_from_proto((await self._response("GetModel", request, timeout)).model)

    async def kept(self, name: str, *, timeout: float | None = None) -> Kept:
        """What the server keeps under a name, as `activations.kept` says it. Raises `NotFound` once
        it has expired or was deleted."""
        request = kept_activations_service_pb2.GetKeptActivationsRequest(name=kept_name(name))
        response = await self._response("GetKeptActivations", request, timeout)
        return kept_from_proto(response.kept_activations)

    async def delete_kept(self, name: str, *, timeout: float | None = None) -> None:
        """Frees what the server keeps under a name before it expires. Raises `NotFound`."""
        request = kept_activations_service_pb2.DeleteKeptActivationsRequest(name=kept_name(name))
        await self._response("DeleteKeptActivations", request, timeout)

    # From here on: how messages move. All else is shared with `Client`.

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return self._connection.open(grpc.aio)

    @cached_property
    def _stubs(self) -> dict[str, Any]:
        return stubs(self._channel)

    async def _run(self, job: Job[Any], timeout: float | None, progress: bool | None) -> Any:
        results: list[Any] = [None] * len(job.parts)
        waiting = iter(enumerate(job.parts))
        with bar(job, progress) as advance:

            async def work() -> None:
                for index, part in waiting:
                    results[index] = await self._collect(part, timeout)
                    advance(part.prompts)

            workers = [
                asyncio.create_task(work()) for _ in range(min(job.in_flight, len(job.parts)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:  # If one failed, or this task is cancelled: stop the others.
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return job.combine(results)

    async def _collect(self, part: Part[T], timeout: float | None) -> T:
        call = part.call()
        with at_prompt(part.first):
            async with aclosing(self._responses(call.method, call.request, timeout)) as responses:
                async for response in responses:
                    call.read(response)
                return call.result()

    async def _events(self, call: Call[Any], timeout: float | None) -> AsyncGenerator[Event, None]:
        async with aclosing(self._responses(call.method, call.request, timeout)) as responses:
            async for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    async def _response(self, method: str, request: Any, timeout: float | None) -> Any:
        (response,) = [each async for each in self._responses(method, request, timeout)]
        return response

    async def _responses(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        rpc = self._stubs[method](
            request,
            timeout=self._connection.timeout if timeout is None else timeout,
            metadata=self._connection.metadata,
        )
        try:
            if method in STREAMING:
                async for response in rpc:
                    yield response
            else:
                yield await rpc
        except grpc.RpcError as error:
            raise from_rpc(error, self._connection.target) from None
        finally:
            rpc.cancel()  # Frees what the server holds when the caller stops early.
