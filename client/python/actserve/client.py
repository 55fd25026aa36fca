"""The client. `AsyncClient` in `aio` is the same with `await`."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any, Self, TypeVar, Unpack, overload

import grpc

from actserve._calls import Call
from actserve._channel import (
    DEFAULT_CONCURRENCY,
    DEFAULT_TARGET,
    STREAMING,
    Connection,
    model_name,
    stubs,
)
from actserve._flight import Flight
from actserve._jobs import Job, Part
from actserve._progress import bar
from actserve.errors import Cancelled, at_prompt, from_rpc
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


class Client:
    """A client of one server, safe to share between threads.

    - `target`: `host:port`, or any gRPC name; one with many addresses is spread over all of them.
    - `model`: the id of the model to use; not needed where only one is served.
    - `tls`: True for TLS with the system's certificate authorities, or `grpc` credentials for
      your own authorities and client certificates. Plaintext otherwise.
    - `token`: sent as `authorization: Bearer`; anyone on the way can read it without TLS.
    - `timeout`: seconds one call may take; no limit by default. Every method can override it. A
      list of prompts is many calls.
    - `metadata`: gRPC metadata sent with every call.
    - `concurrency`: prompts in flight at once when a method is given a list.

    Calls are retried until their first response when the server is unavailable. Every method
    raises a subclass of `ActserveError`; `InvalidRequest` also before anything is sent.
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

    @overload
    def fetch(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        **options: Unpack[FetchOptions],
    ) -> Activations: ...
    @overload
    def fetch(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        **options: Unpack[FetchOptions],
    ) -> list[Activations]: ...
    def fetch(
        self,
        prompt: Any,
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        """The activations of a prompt, or of each of a list of prompts, in order.

        - `sites`: names such as `"resid_post.15"`, TransformerLens names, or `Site`s; may be left
          out where predictions or attention are asked for.
        - `positions`: the tokens whose rows to return; see `Positions`.
        - `element_type`: how rows travel; by default the model's own, which loses nothing, and f32
          for what is computed from them. The arrays are float32 in any case.
        - `projection`: a `Projection`, whose components come in place of the rows.
        - `reduce`: "last", "mean" or "max", for one row in place of those of all positions, after
          any projection.
        - `predictions`: a `Predict`, for `activations.predictions`.
        - `attention`: one `Attention` or several, for `activations.attention`.
        - `keep`: a `Keep`, by which the rows also stay on the server, as `activations.kept`.
        - `steer`: interventions to apply, in order.
        - `progress`: a bar on standard error; by default for a list, on a terminal, with rich.
        """
        job = self._connection.jobs.fetch(prompt, sites, **options)
        return self._run(job, timeout, progress)

    def fetch_means(
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
        """The mean rows of the prompts of each label, in the order in which labels first come.

        Each prompt becomes one row, by `reduce` over its `positions`, and counts once. Nothing but
        the means travels. `labels` has one label for each prompt; the rest is as for `fetch`.

            means = client.fetch_means(texts, labels, "resid_post.15")
            vector = means["liked"]["resid_post.15"] - means["hated"]["resid_post.15"]
        """
        job = self._connection.jobs.fetch_means(
            prompts,
            labels,
            sites,
            steer,
            positions=positions,
            reduce=reduce,
            projection=projection,
        )
        return self._run(job, timeout, progress)

    @overload
    def generate(
        self, prompt: Prompt, *, n: None = None, **options: Unpack[GenerateOptions]
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Prompt, *, n: int, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Prompts[P], *, n: None = None, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Prompts[P], *, n: int, **options: Unpack[GenerateOptions]
    ) -> list[list[Generation]]: ...
    def generate(
        self,
        prompt: Any,
        *,
        n: int | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[StreamOptions],
    ) -> Any:
        """A continuation of a prompt, or of each of a list of prompts, in order.

        - `n`: samples of each prompt; when given, every prompt's result is a list.
        - `steer`: interventions to apply, in order.
        - `capture`: sites to read meanwhile. They and `positions`, `element_type`, `projection`,
          `reduce`, `predictions`, `attention` and `keep` are as for `fetch`.
        - `max_tokens`, `temperature` and the rest of `Sampling`.
        """
        job = self._connection.jobs.generate(prompt, n, **options)
        return self._run(job, timeout, progress)

    def stream(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[StreamOptions],
    ) -> Generator[Event, None, None]:
        """The events of a generation while it runs; arguments as for `generate`.

        Closing the iterator early, as leaving a `for` loop does, cancels the call.
        """
        call = self._connection.jobs.generate_call(prompt, n, keep_captured=False, **options)
        return self._events(call, timeout)

    @overload
    def tokenize(self, prompt: Prompt, *, timeout: float | None = ...) -> Tokenized: ...
    @overload
    def tokenize(self, prompt: Prompts[P], *, timeout: float | None = ...) -> list[Tokenized]: ...
    def tokenize(self, prompt: Any, *, timeout: float | None = None) -> Any:
        """A prompt as the model would see it, or each of a list of prompts, in order."""
        return self._run(self._connection.jobs.tokenize(prompt), timeout, progress=False)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """The served models, by name."""
        models: list[Model] = []
        request = model_service_pb2.ListModelsRequest()
        while True:
            (page,) = self._responses("ListModels", request, timeout)
            models += map(model_from_proto, page.models)
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def model(self, model_id: str, *, timeout: float | None = None) -> Model:
        """One model. Raises `NotFound`."""
        request = model_service_pb2.GetModelRequest(name=model_name(model_id))
        (response,) = self._responses("GetModel", request, timeout)
        return model_from_proto(response.model)

    def kept(self, name: str, *, timeout: float | None = None) -> Kept:
        """What the server keeps under a name, as `activations.kept` says it. Raises `NotFound` once
        it has expired or was deleted."""
        request = kept_activations_service_pb2.GetKeptActivationsRequest(name=kept_name(name))
        (response,) = self._responses("GetKeptActivations", request, timeout)
        return kept_from_proto(response.kept_activations)

    def delete_kept(self, name: str, *, timeout: float | None = None) -> None:
        """Frees what the server keeps under a name before it expires. Raises `NotFound`."""
        request = kept_activations_service_pb2.DeleteKeptActivationsRequest(name=kept_name(name))
        (_,) = self._responses("DeleteKeptActivations", request, timeout)

    # From here on: how messages move. All else is shared with `AsyncClient`.

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
                    advance(futures[future].prompts)
            except BaseException:  # One failed, or the user interrupts: stop the others.
                pool.shutdown(wait=False, cancel_futures=True)
                flight.cancel()
                raise
        return job.combine([future.result() for future in futures])

    def _collect(self, part: Part[T], timeout: float | None, flight: Flight) -> T:
        call = part.call()
        responses = self._responses(call.method, call.request, timeout, flight)
        # Closed by name: a traceback would keep the call alive for as long as the error is.
        with at_prompt(part.first), closing(responses):
            for response in responses:
                call.read(response)
            return call.result()

    def _events(self, call: Call[Any], timeout: float | None) -> Generator[Event, None, None]:
        with closing(self._responses(call.method, call.request, timeout)) as responses:
            for response in responses:
                if event := call.read(response):
                    yield event
        call.result()  # Raises if the stream was cut short.

    def _responses(
        self, method: str, request: Any, timeout: float | None, flight: Flight | None = None
    ) -> Generator[Any, None, None]:
        stub = self._stubs[method]
        rpc = (stub if method in STREAMING else stub.future)(
            request,
            timeout=self._connection.timeout if timeout is None else timeout,
            metadata=self._connection.metadata,
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
