"""The client. `AsyncClient` in `aio` is the same with `await`."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from actserve._channel import model_name
from actserve._explainer import Explainer
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


class Client(Explainer):
    """A client of one server, safe to share between threads.

    - `target`: `host:port`, or any gRPC name; one with many addresses is spread over all of them.
    - `model`: the id of the model to use; not needed where only one is served.
    - `tls`: True for TLS with the system's certificate authorities, or `grpc` credentials for
      your own authorities and client certificates. Plaintext otherwise.
    - `token`: sent as `authorization: Bearer`; anyone on the way can read it without TLS.
    - `timeout`: seconds one call may take; no limit by default. Every method can override it. A
      list of prompts is many calls.
    - `metadata`: gRPC metadata sent with every call.
    - `concurrency`: prompts, or rows to explain, in flight at once when a method is given a list.

    Calls are retried until their first response when the server is unavailable. Every method
    raises a subclass of `ActserveError`; `InvalidRequest` also before anything is sent.
    """

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
        - `readouts`: more to read in the same forward pass, by names of yours: a `Read`, a
          `Predict`, an `Attention`, an `AttentionSummary` or a `LogitAttribution` each.
          `activations.readouts` has what they give.
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
          `reduce`, `predictions`, `attention`, `keep` and `readouts` are as for `fetch`.
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
        pages = self._pages("ListModels", model_service_pb2.ListModelsRequest(), timeout)
        models = [model for page in pages for model in page.models]
        nlas = self._nlas("models/-", timeout)
        return [model_from_proto(model, nlas) for model in models]

    def model(self, model_id: str, *, timeout: float | None = None) -> Model:
        """One model. Raises `NotFound`."""
        request = model_service_pb2.GetModelRequest(name=model_name(model_id))
        (response,) = self._responses("GetModel", request, timeout)
        return model_from_proto(response.model, self._nlas(response.model.name, timeout))

    def _nlas(self, parent: str, timeout: float | None) -> list[explanation_service_pb2.Nla]:
        request = explanation_service_pb2.ListNlasRequest(parent=parent)
        pages = self._pages("ListNlas", request, timeout)
        return [nla for page in pages for nla in page.nlas]

    def token_rows(
        self,
        matrix: TokenMatrix,
        token_ids: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """Rows of the embedding or of the unembedding, float32 [token ids, width].

        The embedding is without any scale that the model gives it, the unembedding without the gain
        of the final norm; where the model ties them, they are equal. At most 4096 ids a call.
        """
        job = self._connection.weight_jobs.token_rows(matrix, token_ids)
        return self._run(job, timeout, progress=False)

    def head_matrices(
        self,
        layer: int,
        heads: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> list[HeadMatrices]:
        """What some heads of a layer compute with, in the order of `heads`: W_Q, W_K, W_V and W_O,
        and as `qk` and `ov` what goes together. `layer` may be negative."""
        job = self._connection.weight_jobs.head_matrices(layer, heads)
        return self._run(job, timeout, progress=False)

    def kept(self, name: str, *, timeout: float | None = None) -> Kept:
        """What the server keeps under a name, as `activations.kept` says it. Raises `NotFound` once
        it has expired or was deleted."""
        request = kept_activations_service_pb2.GetKeptActivationsRequest(name=kept_name(name))
        (response,) = self._responses("GetKeptActivations", request, timeout)
        return kept_from_proto(response.kept_activations)

    def list_kept(self, *, timeout: float | None = None) -> list[Kept]:
        """All that the tenant of the client's token keeps on the server, by name. Raises
        `NotServed` on a server without tokens."""
        request = kept_activations_service_pb2.ListKeptActivationsRequest()
        pages = self._pages("ListKeptActivations", request, timeout)
        return [kept_from_proto(kept) for page in pages for kept in page.kept_activations]

    def delete_kept(self, name: str, *, timeout: float | None = None) -> None:
        """Frees what the server keeps under a name before it expires. Raises `NotFound`."""
        request = kept_activations_service_pb2.DeleteKeptActivationsRequest(name=kept_name(name))
        (_,) = self._responses("DeleteKeptActivations", request, timeout)
