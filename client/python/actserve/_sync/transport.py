"""The transport: how messages move between the blocking client and its server."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, TypeVar, cast

import grpc

from actserve._calls import Call
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


class Transport:
    """Runs jobs, which the public methods make."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._channels = Channels(connection, grpc)
        self._models: list[pb.Model] | None = None
        self._told = 0.0
        self._version = ServerVersion(version("actserve"))
        self._flights = Flight()  # Of flights, each of which is the calls of one method.
        self._closed = False

    def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        self._closed = True
        self._flights.cancel()
        for channel in self._channels.opened():
            channel.close()

    def sleep(self, seconds: float) -> None:
        """Waits for so many seconds. Raises `Cancelled` once the client is closed."""
        with self._flight() as flight:
            if self._closed or flight.cancelled(within=seconds):
                raise Cancelled("the client is closed; make another one")

    def run(self, job: Job[Any], timeout: float | None, progress: bool | None = False) -> Any:
        """All of a job, and what its method returns."""
        if len(job.parts) == 1:  # In the caller's thread.
            with self._flight() as flight:
                return job.combine([self._collect(job.parts[0], timeout, flight)])
        with (
            bar(job, progress) as advance,
            closing(self.ordered(job.parts, job.in_flight, timeout, advance)) as results,
        ):
            return job.combine([*results])

    def ordered(
        self,
        parts: Iterable[Part[T]],
        in_flight: int,
        timeout: float | None,
        advance: Callable[[int], object] = lambda items: None,
    ) -> Generator[T, None, None]:
        """The results of calls in their order, of which some run at once. Calls are made as
        results are taken, so that what waits for a slow one is bounded. The first that fails stops
        the others."""
        source, flight = iter(parts), Flight()
        self._flights.add(flight)
        waiting: deque[Future[T]] = deque()

        def collect(part: Part[T]) -> T:
            result = self._collect(part, timeout, flight)
            advance(part.items)
            return result

        pool = ThreadPoolExecutor(in_flight, "actserve")
        try:
            while True:
                while (
                    len(waiting) < _AHEAD * in_flight
                    and not (waiting and waiting[0].done())  # What is ready goes out first.
                    and (part := next(source, None))
                ):
                    waiting.append(pool.submit(collect, part))
                if not waiting:
                    return
                running = [future for future in waiting if not future.done()]
                if running and not waiting[0].done():
                    wait(running, return_when=FIRST_COMPLETED)
                for future in waiting:
                    if future.done():
                        future.result()  # Raises what one of them raised, whichever is first.
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
        finally:  # One failed, or the caller stops early: stop the others.
            flight.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            self._flights.remove(flight)

    def _collect(self, part: Part[T], timeout: float | None, flight: Flight) -> T:
        retries = Retries(self.connection.timeout if timeout is None else timeout)
        while part.call:
            begun = False
            try:
                with at_item(part.first):
                    call = part.call()
                    left = retries.left()
                    responses = self.messages(call.method, call.request, left, flight)
                    # Closed by name: a traceback would keep the call alive for as long as the error
                    # is.
                    with closing(responses):
                        for response in responses:
                            begun = True
                            call.read(response)
                        return call.result()
            except ActserveError as error:
                if part.failed and is_of_one_prompt(error):
                    return part.failed(error)
                # Before the first response it was tried again already.
                pause = retries.pause(error) if begun else None
                if pause is None or flight.cancelled(within=pause):
                    raise
        return part.answer

    def events(self, call: Call[Any], timeout: float | None) -> Generator[Any, None, None]:
        """What happens in one call, while it does."""
        with closing(self.messages(call.method, call.request, timeout)) as responses:
            for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    def response(self, method: str, request: Any, timeout: float | None) -> Any:
        """The answer of a call that has one."""
        return only_answer([*self.messages(method, request, timeout)])

    def pages(self, method: str, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        """The pages of a list, each of which is asked for when it is needed."""
        asked = type(request)()
        asked.CopyFrom(request)
        while True:
            page = self.response(method, asked, timeout)
            yield page
            if not page.next_page_token:
                return
            if page.next_page_token == asked.page_token:
                raise BadResponse("the server sent a page that names itself as the next one")
            asked.page_token = page.next_page_token

    def whole(self, method: str, request: Any, timeout: float | None) -> Generator[Any, None, None]:
        """The messages of a stream. Raises `StreamCutShort` if the last one is missing."""
        finished = False
        with closing(self.messages(method, request, timeout)) as messages:
            for message in messages:
                finished = finished or is_last(message)
                yield message
        check_complete(finished, (), 0, "")

    def resumed(self, call: Any, timeout: float | None) -> Generator[Any, None, None]:
        """What happens in a call that goes on where its connection was lost, as often as it comes
        further; `call.begin()` is what is still wanted. All of it may take `timeout` seconds; a day
        when None."""
        retries = Retries(_LONGEST_S if timeout is None else timeout)
        with self._flight() as flight:
            while True:
                begun = False
                try:
                    request, left = call.begin(), retries.left()
                    messages = self.messages(call.method, request, left, flight)
                    with closing(messages) as responses:
                        for response in responses:
                            begun = True
                            if event := call.read(response):
                                retries = Retries(retries.left())
                                yield event
                    call.result()  # Raises if the stream was cut short.
                    return
                except ActserveError as error:
                    # Before the first response it was tried again already.
                    pause = retries.pause(error) if begun else None
                    if pause is None or flight.cancelled(within=pause):
                        raise

    def messages(
        self,
        method: str,
        request: Any,
        timeout: float | None,
        flight: Flight | None = None,
        retries: Retries | None = None,
    ) -> Generator[Any, None, None]:
        """The responses of a call, which is made again if it ends before the first and may be; by
        `retries`, where given, which have a timeout of their own."""
        if (size := request.ByteSize()) > LARGE:
            check_size(size, only_model(self.models(timeout), self.connection.model))
        retries = retries or Retries(self.connection.timeout if timeout is None else timeout)
        with nullcontext(flight) if flight else self._flight() as flight:
            while True:
                begun = False
                try:
                    left = retries.left()
                    with closing(self._attempt(method, request, left, flight)) as responses:
                        for response in responses:
                            begun = True
                            yield response
                        return
                except ActserveError as error:
                    again = method in HARMLESS and not begun
                    pause = retries.pause(error) if again else None
                    if pause is None or flight.cancelled(within=pause):
                        raise

    @contextmanager
    def _flight(self) -> Generator[Flight, None, None]:
        """The calls of one method, which closing the client stops, be it in a pause."""
        flight = Flight()
        self._flights.add(flight)
        try:
            yield flight
        finally:
            self._flights.remove(flight)

    def _attempt(
        self, method: str, request: Any, timeout: float | None, flight: Flight
    ) -> Generator[Any, None, None]:
        if self._closed:
            raise Cancelled("the client is closed; make another one")
        target = self.connection.target_of(request)
        stub = self._channels.stub(target, method)
        make = stub if method in STREAMING else stub.future
        with self.connection.attempt(method, request) as headers:
            with untouched():
                rpc = make(request, timeout=timeout, metadata=headers)
            flight.add(rpc)
            try:
                if method in STREAMING:
                    yield from rpc
                else:
                    yield rpc.result()
                self._version.check(rpc.trailing_metadata())
            except grpc.RpcError as error:
                self._version.check(cast(Any, error).trailing_metadata())
                raise from_rpc(error, target) from None
            except grpc.FutureCancelledError:
                raise Cancelled("the call was cancelled") from None
            finally:
                rpc.cancel()  # Frees what the server holds when the caller stops early.
                flight.remove(rpc)

    def models(self, timeout: float | None) -> list[pb.Model]:
        """The served models, as they were a minute ago at most: what a request is checked against
        before it is sent. The server checks it too."""
        if self._models is None or time.monotonic() - self._told > _FRESH_S:
            pages = self.pages("ListModels", pb.ListModelsRequest(), timeout)
            self._models = [model for page in pages for model in page.models]
            self._told = time.monotonic()
        return self._models


_FRESH_S = 60.0
"""For as long as this a description of the models holds: a server may be started anew."""

_LONGEST_S = 86_400.0
"""Of a call that goes on, where no other limit is given."""

_AHEAD = 4
"""Calls begun and not yet taken, for each that may run at once."""
