"""The transport of the asyncio client: `_transport` with `await`."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar

import grpc
import grpc.aio
from typing_extensions import Self

from actserve._calls import Call
from actserve._cancelling import is_task_cancelled
from actserve._channel import DEFAULT_CONCURRENCY, DEFAULT_TARGET, STREAMING, Connection, stubs
from actserve._flight import Flight
from actserve._jobs import Job, Part
from actserve._progress import bar
from actserve.errors import Cancelled, at_item, from_rpc

T = TypeVar("T")


class AsyncTransport:
    """What runs jobs; the public methods make them."""

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
        self._flight = Flight()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        # Each call, since gRPC 1.60 lets a stream that nobody waits for end as if it were complete.
        self._flight.cancel()
        await self._channel.close()

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
                    advance(part.items)

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
        with at_item(part.first):
            async with aclosing(self._responses(call.method, call.request, timeout)) as responses:
                async for response in responses:
                    call.read(response)
                return call.result()

    async def _events(self, call: Call[Any], timeout: float | None) -> AsyncGenerator[Any, None]:
        async with aclosing(self._responses(call.method, call.request, timeout)) as responses:
            async for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    async def _pages(self, method: str, request: Any, timeout: float | None) -> list[Any]:
        """All pages of a list, from the first."""
        pages: list[Any] = []
        while not pages or pages[-1].next_page_token:
            if pages:
                request.page_token = pages[-1].next_page_token
            pages.append(await self._response(method, request, timeout))
        return pages

    async def _response(self, method: str, request: Any, timeout: float | None) -> Any:
        (response,) = [each async for each in self._responses(method, request, timeout)]
        return response

    async def _responses(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        rpc = self._stubs[method](
            request,
            timeout=self._connection.timeout if timeout is None else timeout,
            metadata=self._connection.headers(request),
        )
        self._flight.add(rpc)
        try:
            if method in STREAMING:
                async for response in rpc:
                    yield response
            else:
                yield await rpc
        except grpc.RpcError as error:
            raise from_rpc(error, self._connection.target) from None
        except asyncio.CancelledError:
            # Of this task, or of the call alone, which closing the client cancels.
            if is_task_cancelled(closed=self._flight.cancelled):
                raise
            raise Cancelled("the call was cancelled") from None
        finally:
            self._flight.remove(rpc)
            rpc.cancel()  # Frees what the server holds when the caller stops early.
