"""The methods of the asyncio client that explain activations: `_explainer` with `await`."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, SupportsIndex, overload

from numpy.typing import ArrayLike
from typing_extensions import Unpack

from actserve._aio_transport import AsyncTransport
from actserve.edits import ExplanationEdit
from actserve.events import ExplainEvent
from actserve.explaining import Explaining
from actserve.explanations import ExplainedText, Score
from actserve.models import Model, only_nla
from actserve.nlas import Baseline, baseline_name
from actserve.options import ExplainTextOptions
from actserve.positions import Positions
from actserve.prompts import P, Prompt, Prompts
from actserve.sites import SiteLike
from actserve.steering import Intervention
from actserve.tensors import Float32Array
from actserve.v1 import explanation_service_pb2 as pb


class AsyncExplainer(AsyncTransport):
    """What natural language autoencoders do; see `Explainer`."""

    @abstractmethod
    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """The served models."""

    async def explain(
        self,
        rows: ArrayLike,
        site: SiteLike,
        *,
        nla: str | None = None,
        positions: SupportsIndex | Sequence[SupportsIndex] | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[Explaining],
    ) -> Any:
        """What rows say, in words; see `Client.explain`."""
        job = self._connection.explain_jobs.explain(rows, site, nla, positions, **options)
        return await self._run(job, timeout, progress)

    def explain_stream(
        self,
        rows: ArrayLike,
        site: SiteLike,
        *,
        nla: str | None = None,
        positions: SupportsIndex | Sequence[SupportsIndex] | None = None,
        timeout: float | None = None,
        **options: Unpack[Explaining],
    ) -> AsyncGenerator[ExplainEvent, None]:
        """The events of an explanation while it is written; see `Client.explain_stream`.

        Leaving an `async for` loop early cancels the call soon; `contextlib.aclosing` cancels it
        at once.
        """
        call = self._connection.explain_jobs.explain_call(rows, site, nla, positions, **options)
        return self._events(call, timeout)

    @overload
    async def explain_text(
        self, prompt: Prompt, **options: Unpack[ExplainTextOptions]
    ) -> ExplainedText: ...
    @overload
    async def explain_text(
        self, prompt: Prompts[P], **options: Unpack[ExplainTextOptions]
    ) -> list[ExplainedText]: ...
    async def explain_text(
        self,
        prompt: Any,
        *,
        nla: str | None = None,
        positions: Positions = "all",
        steer: Intervention | Iterable[Intervention] = (),
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[Explaining],
    ) -> Any:
        """What the model thinks at the tokens of a prompt, or of each of a list of prompts; see
        `Client.explain_text`."""
        job = self._connection.explain_jobs.explain_text(prompt, nla, positions, steer, **options)
        return await self._run(job, timeout, progress)

    def explain_text_stream(
        self,
        prompt: Prompt,
        *,
        nla: str | None = None,
        positions: Positions = "all",
        steer: Intervention | Iterable[Intervention] = (),
        timeout: float | None = None,
        **options: Unpack[Explaining],
    ) -> AsyncGenerator[ExplainEvent, None]:
        """The events of an explanation while it is written; see `Client.explain_text_stream`, and
        `explain_stream` on leaving early."""
        call = self._connection.explain_jobs.explain_text_call(
            prompt, nla, positions, steer, partial=True, **options
        )
        return self._events(call, timeout)

    async def compare(
        self,
        rows: ArrayLike,
        reference: ArrayLike,
        site: SiteLike,
        *,
        nla: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[Explaining],
    ) -> Any:
        """What rows say that a reference does not; see `Client.compare`."""
        job = self._connection.explain_jobs.compare(rows, reference, site, nla, **options)
        return await self._run(job, timeout, progress)

    async def reconstruct(
        self,
        texts: str | list[str] | tuple[str, ...],
        site: SiteLike,
        *,
        nla: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Float32Array:
        """The rows that texts explain; see `Client.reconstruct`."""
        job = self._connection.reconstruct_jobs.reconstruct(texts, site, nla)
        return await self._run(job, timeout, progress)

    async def edit_vector(
        self,
        original: str,
        edited: str,
        site: SiteLike,
        *,
        nla: str | None = None,
        timeout: float | None = None,
    ) -> Float32Array:
        """The reconstruction of an edited explanation less that of the original; see
        `Client.edit_vector`."""
        edit = ExplanationEdit(original, edited, nla)
        job = self._connection.reconstruct_jobs.edit_vector(edit, site)
        return await self._run(job, timeout, progress=False)

    @overload
    async def score(
        self,
        rows: ArrayLike,
        texts: str,
        site: SiteLike,
        *,
        nla: str | None = ...,
        baseline: str | None = ...,
        timeout: float | None = ...,
        progress: bool | None = ...,
    ) -> Score: ...
    @overload
    async def score(
        self,
        rows: ArrayLike,
        texts: list[str] | tuple[str, ...],
        site: SiteLike,
        *,
        nla: str | None = ...,
        baseline: str | None = ...,
        timeout: float | None = ...,
        progress: bool | None = ...,
    ) -> list[Score]: ...
    async def score(
        self,
        rows: ArrayLike,
        texts: str | list[str] | tuple[str, ...],
        site: SiteLike,
        *,
        nla: str | None = None,
        baseline: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Any:
        """How well texts account for rows; see `Client.score`."""
        job = self._connection.reconstruct_jobs.score(rows, texts, site, nla, baseline)
        return await self._run(job, timeout, progress)

    async def set_baseline(
        self,
        rows: ArrayLike,
        site: SiteLike,
        *,
        nla: str | None = None,
        name: str = "default",
        shared: bool = False,
        timeout: float | None = None,
    ) -> Baseline:
        """Measures what scores are relative to, and stores it; see `Client.set_baseline`."""
        if nla is None:
            nla = only_nla(await self.models(timeout=timeout), self._connection.jobs.model, site).id
        job = self._connection.reconstruct_jobs.set_baseline(rows, site, nla, name, shared)
        return await self._run(job, timeout, progress=False)

    async def delete_baseline(
        self,
        name: str,
        *,
        nla: str | None = None,
        shared: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Forgets a baseline; see `Client.delete_baseline`."""
        request = pb.DeleteExplanationBaselineRequest(name=baseline_name(name, nla), shared=shared)
        await self._response("DeleteExplanationBaseline", request, timeout)
