"""The transport: how messages move between the blocking client and its server."""

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any, TypeVar

import grpc
from typing_extensions import Self

from actserve._calls import Call
from actserve._channel import DEFAULT_CONCURRENCY, DEFAULT_TARGET, STREAMING, Connection, stubs
from actserve._flight import Flight
from actserve._jobs import Job, Part
from actserve._progress import bar
from actserve.errors import Cancelled, at_item, from_rpc

T = TypeVar("T")


class Transport:
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
        # Opened here, though it connects when first used: threads that opened it on demand could
        # each open one.
        self._channel: grpc.Channel = self._connection.open(grpc)
        self._stubs = stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what still runs and closes the connection."""
        self._channel.close()

    def _run(self, job: Job[Any], timeout: float | None, progress: bool | None) -> Any:
        flight = Flight()
        if len(job.parts) == 1:
            return job.combine([self._collect(job.parts[0], timeout, flight)])
        with ThreadPoolExecutor(job.in_flight, "actserve") as pool, bar(job, progress) as advance:
            futures = {
                pool.submit(self._collect, part, timeout, flight): part for part in job.parts
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(futures[future].items)
            except BaseException:  # One failed, or the user interrupts: stop the others.
                pool.shutdown(wait=False, cancel_futures=True)
                flight.cancel()
                raise
        return job.combine([future.result() for future in futures])

    def _collect(self, part: Part[T], timeout: float | None, flight: Flight) -> T:
        call = part.call()
        responses = self._responses(call.method, call.request, timeout, flight)
        # Closed by name: a traceback would keep the call alive for as long as the error is.
        with at_item(part.first), closing(responses):
            for response in responses:
                call.read(response)
            return call.result()

    def _events(self, call: Call[Any], timeout: float | None) -> Generator[Any, None, None]:
        with closing(self._responses(call.method, call.request, timeout)) as responses:
            for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    def _pages(self, method: str, request: Any, timeout: float | None) -> list[Any]:
        """All pages of a list, from the first."""
        pages: list[Any] = []
        while not pages or pages[-1].next_page_token:
            if pages:
                request.page_token = pages[-1].next_page_token
            pages += self._responses(method, request, timeout)
        return pages

    def _responses(
        self, method: str, request: Any, timeout: float | None, flight: Flight | None = None
    ) -> Generator[Any, None, None]:
        stub = self._stubs[method]
        rpc = (stub if method in STREAMING else stub.future)(
            request,
            timeout=self._connection.timeout if timeout is None else timeout,
            metadata=self._connection.headers(request),
        )
        flight = flight or Flight()
        flight.add(rpc)
        try:
            if method in STREAMING:
                yield from rpc
            else:
                yield rpc.result()
        except grpc.RpcError as error:
            raise from_rpc(error, self._connection.target) from None
        except grpc.FutureCancelledError:
            raise Cancelled("the call was cancelled") from None
        finally:
            rpc.cancel()  # Frees what the server holds when the caller stops early.
            flight.remove(rpc)
