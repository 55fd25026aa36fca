"""The transport: how messages move between the asyncio client and its server."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from importlib.metadata import version
from typing import Any, TypeVar

import grpc
import grpc.aio

from actserve._calls import Call
from actserve._cancelling import is_task_cancelled
from actserve._channel import HARMLESS, STREAMING, Channels, Connection
from actserve._flight import Flight
from actserve._jobs import Job, Part, is_of_one_prompt
from actserve._progress import bar
from actserve._request_size import LARGE, check_size
from actserve._retries import Retries
from actserve._traces import untouched
from actserve._versions import ServerVersion
from actserve._whole_answers import check_complete, is_last, only_answer
from actserve.errors import ActserveError, BadResponse, Cancelled, at_item, from_rpc
from actserve.models import only_model
from actserve.v1 import model_service_pb2 as pb

T = TypeVar("T")


class AsyncTransport:
    """Runs jobs, which the public methods make."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._flight = Flight()
        self._version = ServerVersion(version("actserve"))
        self._closed = False
        self._channels = Channels(connection, grpc.aio)

    async def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        self._closed = True
        # By hand: a stream that gRPC 1.60 cancels as it closes seems to have ended well.
        self._flight.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels.opened()))

    async def sleep(self, seconds: float) -> None:
        """Waits for so many seconds. Raises `Cancelled` once the client is closed."""
        await asyncio.sleep(seconds)
        if self._closed:
            raise Cancelled("the client is closed; make another one")

    async def run(self, job: Job[Any], timeout: float | None, progress: bool | None = False) -> Any:
        """All of a job, and what its method returns."""
        if len(job.parts) == 1:
            return job.combine([await self._collect(job.parts[0], timeout)])
        with bar(job, progress) as advance:
            results = self.ordered(job.parts, job.in_flight, timeout, advance)
            async with aclosing(results):
                return job.combine([result async for result in results])

    async def ordered(
        self,
        parts: Iterable[Part[T]],
        in_flight: int,
        timeout: float | None,
        advance: Callable[[int], object] = lambda items: None,
    ) -> AsyncGenerator[T, None]:
        """The results of calls in their order, of which some run at once. Calls are made as
        results are taken, so that what waits for a slow one is bounded. The first that fails stops
        the others."""
        source, listed = iter(parts), isinstance(parts, Sequence)
        slots = asyncio.Semaphore(in_flight)
        waiting: deque[asyncio.Task[T]] = deque()

        async def following() -> Part[T] | None:
            # What a caller's generator waits for must not hold the event loop.
            return next(source, None) if listed else await asyncio.to_thread(next, source, None)

        async def collect(part: Part[T]) -> T:
            async with slots:
                result = await self._collect(part, timeout)
            advance(part.items)
            return result

        try:
            while True:
                while (
                    len(waiting) < _AHEAD * in_flight
                    and not (waiting and waiting[0].done())  # What is ready goes out first.
                    and (part := await following())
                ):
                    waiting.append(asyncio.create_task(collect(part)))
                if not waiting:
                    return
                running = [task for task in waiting if not task.done()]
                if running and not waiting[0].done():
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    if task.done():
                        task.result()  # Raises what one of them raised, whichever is first.
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _collect(self, part: Part[T], timeout: float | None) -> T:
        retries = Retries(self.connection.timeout if timeout is None else timeout)
        while part.call:
            begun = False
            try:
                with at_item(part.first):
                    call = part.call()
                    responses = self.messages(call.method, call.request, retries.left())
                    async with aclosing(responses):
                        async for response in responses:
                            begun = True
                            call.read(response)
                        return call.result()
            except ActserveError as error:
                if part.failed and is_of_one_prompt(error):
                    return part.failed(error)
                # Before the first response it was tried again already.
                pause = retries.pause(error) if begun else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)
        return part.answer

    async def events(self, call: Call[Any], timeout: float | None) -> AsyncGenerator[Any, None]:
        """What happens in one call, while it does."""
        async with aclosing(self.messages(call.method, call.request, timeout)) as responses:
            async for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    async def response(self, method: str, request: Any, timeout: float | None) -> Any:
        """The answer of a call that has one."""
        answers = [each async for each in self.messages(method, request, timeout)]
        return only_answer(answers)

    async def pages(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """The pages of a list, each of which is asked for when it is needed."""
        asked = type(request)()
        asked.CopyFrom(request)
        while True:
            page = await self.response(method, asked, timeout)
            yield page
            if not page.next_page_token:
                return
            if page.next_page_token == asked.page_token:
                raise BadResponse("the server sent a page that names itself as the next one")
            asked.page_token = page.next_page_token

    async def whole(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """The messages of a stream. Raises `StreamCutShort` if the last one is missing."""
        finished = False
        async with aclosing(self.messages(method, request, timeout)) as messages:
            async for message in messages:
                finished = finished or is_last(message)
                yield message
        check_complete(finished, (), 0, "")

    async def resumed(self, call: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        """What happens in a call that goes on where its connection was lost, as often as it comes
        further; `call.begin()` is what is still wanted. All of it may take `timeout` seconds; a day
        when None."""
        retries = Retries(_LONGEST_S if timeout is None else timeout)
        while True:
            begun = False
            try:
                request, left = call.begin(), retries.left()
                async with aclosing(self.messages(call.method, request, left)) as responses:
                    async for response in responses:
                        begun = True
                        if event := call.read(response):
                            retries = Retries(retries.left())
                            yield event
                call.result()  # Raises if the stream was cut short.
                return
            except ActserveError as error:
                # Before the first response it was tried again already.
                pause = retries.pause(error) if begun else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def messages(
        self, method: str, request: Any, timeout: float | None, retries: Retries | None = None
    ) -> AsyncGenerator[Any, None]:
        """The responses of a call, which is made again if it ends before the first and may be; by
        `retries`, where given, which have a timeout of their own."""
        if (size := request.ByteSize()) > LARGE:
            check_size(size, only_model(await self.models(timeout), self.connection.model))
        retries = retries or Retries(self.connection.timeout if timeout is None else timeout)
        while True:
            begun = False
            try:
                async with aclosing(self._attempt(method, request, retries.left())) as responses:
                    async for response in responses:
                        begun = True
                        yield response
                    return
            except ActserveError as error:
                again = method in HARMLESS and not begun
                pause = retries.pause(error) if again else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _attempt(
        self, method: str, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        if self._closed:
            raise Cancelled("the client is closed; make another one")
        target = self.connection.target_of(request)
        stub = self._channels.stub(target, method)
        with self.connection.attempt(method, request) as headers:
            with untouched():
                rpc = stub(request, timeout=timeout, metadata=headers)
            self._flight.add(rpc)
            try:
                if method in STREAMING:
                    async for response in rpc:
                        yield response
                else:
                    yield await rpc
                self._version.check(await rpc.trailing_metadata())
            except grpc.aio.AioRpcError as error:
                self._version.check(error.trailing_metadata())
                raise from_rpc(error, target) from None
            except asyncio.CancelledError:
                # Of this task, or of the call alone, which closing the client cancels.
                if is_task_cancelled(closed=self._flight.cancelled()):
                    raise
                raise Cancelled("the call was cancelled") from None
            finally:
                self._flight.remove(rpc)
                rpc.cancel()  # Frees what the server holds when the caller stops early.

    async def models(self, timeout: float | None) -> list[pb.Model]:
        """The served models, as they were a minute ago at most: what a request is checked against
        before it is sent. The server checks it too."""
        if self._models is None or time.monotonic() - self._told > _FRESH_S:
            pages = self.pages("ListModels", pb.ListModelsRequest(), timeout)
            self._models = [model async for page in pages for model in page.models]
            self._told = time.monotonic()
        return self._models

    _models: list[pb.Model] | None = None
    _told: float = 0.0


_FRESH_S = 60.0
"""For as long as this a description of the models holds: a server may be started anew."""

_LONGEST_S = 86_400.0
"""Of a call that goes on, where no other limit is given."""

_AHEAD = 4
"""Calls begun and not yet taken, for each that may run at once."""
