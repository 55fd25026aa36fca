"""Explaining: what natural language autoencoders do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from os import PathLike
from typing import Any, Literal, SupportsIndex, overload

from numpy.typing import ArrayLike
from typing_extensions import Unpack

from actserve._async.base import AsyncBase
from actserve._async.streams import AsyncStream
from actserve._checks import given
from actserve._corpus_prompts import CorpusPrompts
from actserve._progress import reaching
from actserve._prompt_lists import OnError
from actserve._signatures import spelled_out
from actserve.edits import ExplanationEdit
from actserve.errors import ActserveError
from actserve.events import ExplainEvent
from actserve.explained_corpora import CorpusWriter, ExplainedCorpus
from actserve.explaining import Explaining
from actserve.explanations import ExplainedText, Score
from actserve.models import chosen_nla, only_nla
from actserve.nlas import Baseline, baseline_name, is_short
from actserve.options import ExplainTextOptions, InterveneOfEach, PositionsOfEach
from actserve.positions import Positions
from actserve.prompts import P, Prompt, Prompts
from actserve.sites import SiteLike
from actserve.steering_vectors import Intervene
from actserve.tensors import Float32Array
from actserve.v1 import explanation_service_pb2 as pb


class AsyncExplainer(AsyncBase):
    """What natural language autoencoders do: activations to words, and back.

    Everywhere `site` is where rows come from, which the NLA was trained on, and `nla` the id of the
    NLA, which is not needed where the site has only one; `Model.nlas` lists them.
    """

    @spelled_out(Explaining)
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
        """What rows say, in words: an `Explanation` of one row [width], or a list of one for each
        of many rows [rows, width], in order. With `samples`, but not with `best`, each row's result
        is a list.

        - `positions`: the token position of each row, all of one sequence. Flags and recurrence
          need them.
        - `samples`, `temperature`, `top_p`, `max_tokens`, `seed`: how to sample.
        - `question`: what to ask of each row, for NLAs that answer questions.
        - `score`: whether the reconstructor scores each explanation, relative to `baseline`.
        - `best`: only the sample of each row with the highest cosine comes back (best of n).
        - `leave_one_out`, `neighbor_distance`: what speaks for each sentence, as
          `explanation.claims`.

            acts = client.fetch("The capital of France is", "resid_post.20")
            best = client.explain(acts["resid_post.20"][-1], "resid_post.20", samples=8, best=True)
            best.text, best.score, best.flags

        Many rows are several calls, but one call with `neighbor_distance`.
        """
        nla = await self._named(nla, options.get("baseline"), site, timeout)
        job = self._connection.explain_jobs.explain(rows, site, nla, positions, **options)
        return await self._transport.run(job, timeout, progress)

    @spelled_out(Explaining)
    def explain_stream(
        self,
        rows: ArrayLike,
        site: SiteLike,
        *,
        nla: str | None = None,
        positions: SupportsIndex | Sequence[SupportsIndex] | None = None,
        timeout: float | None = None,
        **options: Unpack[Explaining],
    ) -> AsyncStream[ExplainEvent, Any]:
        """The events of an explanation while it is written: a stream, whose `result()` is what
        `explain` returns. Arguments as there."""
        asked = given(rows=rows, site=site, nla=nla, positions=positions, **options)
        return self._stream(self._connection.explain_jobs.streamed, asked, timeout)

    @overload
    async def explain_text(
        self, prompt: Prompt, **options: Unpack[ExplainTextOptions]
    ) -> ExplainedText: ...
    @overload
    async def explain_text(
        self,
        prompt: Prompts[P],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[ExplainTextOptions],
    ) -> list[ExplainedText]: ...
    @overload
    async def explain_text(
        self,
        prompt: Prompts[P],
        *,
        on_error: Literal["return"],
        **options: Unpack[ExplainTextOptions],
    ) -> list[ExplainedText | ActserveError]: ...
    @spelled_out(Explaining)
    async def explain_text(
        self,
        prompt: Any,
        *,
        nla: str | None = None,
        positions: Positions | PositionsOfEach = "all",
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        adapter: str | None = None,
        on_error: OnError = "raise",
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[Explaining],
    ) -> Any:
        """What the model thinks at the tokens of a prompt, or of each of a list of prompts, in
        order. The rows themselves do not travel.

        - `positions`: the tokens to explain; see `Positions`.
        - `intervene`: interventions to apply to the prompt's run, in order.
        - `adapter`: as for `fetch`. The NLA was trained on the model without one.
        - `on_error`, and `positions` and `intervene` of each prompt: as for `fetch`.
        - The rest is as for `explain`.

            for token, explanation in client.explain_text("The capital of France is", score=True):
                print(token, explanation.text, explanation.score)
        """
        nla = await self._named(nla, options.get("baseline"), None, timeout)
        asked = given(nla=nla, positions=positions, intervene=intervene, adapter=adapter, **options)
        asked = await self._resolved(asked, timeout)
        job = self._connection.explain_jobs.explain_text(prompt, on_error, **asked)
        return await self._transport.run(job, timeout, progress)

    @spelled_out(Explaining)
    async def explain_corpus(
        self,
        prompts: Iterable[Prompt],
        folder: str | PathLike[str],
        *,
        keys: Iterable[str] | None = None,
        nla: str | None = None,
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
        progress: bool | None = None,
        **options: Unpack[Explaining],
    ) -> ExplainedCorpus:
        """Explains the prompts of a corpus, which may be a generator, into a folder of Parquet
        files. The same call goes on where it was stopped and explains nothing twice; with more
        prompts after the first ones it adds them.

        A prompt that is refused is in `failed` of what comes back, and the others go on; the next
        call tries it again. A server that cannot be reached raises. Needs the extra `files`.

        - `folder`: where; made if it is not there.
        - `keys`: a name for each prompt; else its number as text.
        - `timeout`: seconds that each call may take.
        - `progress`: a bar on standard error; by default on a terminal, with rich.
        - The rest is as for `explain_text`.

        Raises `InvalidRequest` for a folder that holds something else, or was asked for otherwise,
        and for prompts that are not those that it has.

            corpus = client.explain_corpus(texts, "explained", positions="last", score=True)
            corpus.to_pandas(), corpus.failed
        """
        models = await self.models(timeout=timeout)
        model, found = chosen_nla(models, self._connection.model, nla)
        asked = given(nla=found.id, positions=positions, intervene=intervene, **options)
        asked = await self._resolved(asked, timeout)
        jobs = self._connection.explain_jobs
        of = jobs.corpus_asked(f"models/{model.id}", found.site, **asked)
        writer = CorpusWriter(folder, of)
        corpus = CorpusPrompts(prompts, keys, writer)
        parts = jobs.corpus_parts(corpus.wanted(), **asked)
        with reaching("explain", progress) as reach:
            results = self._transport.ordered(parts, jobs.in_flight, timeout)
            async with aclosing(results) as explained:
                async for each in explained:
                    corpus.take(each)
                    reach(corpus.done, corpus.total)
        writer.pack()
        return ExplainedCorpus(folder)

    @spelled_out(Explaining)
    def explain_text_stream(
        self,
        prompt: Prompt,
        *,
        nla: str | None = None,
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        adapter: str | None = None,
        timeout: float | None = None,
        **options: Unpack[Explaining],
    ) -> AsyncStream[ExplainEvent, ExplainedText]:
        """The events of an explanation while it is written: a stream, whose `result()` is what
        `explain_text` returns. Arguments as there."""
        asked = given(
            prompt=prompt,
            nla=nla,
            positions=positions,
            intervene=intervene,
            adapter=adapter,
            **options,
        )
        return self._stream(self._connection.explain_jobs.text_streamed, asked, timeout)

    @spelled_out(Explaining)
    async def explain_difference(
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
        """What rows say that a reference does not: explanations of `rows - reference`, in the
        shape that `explain` gives them.

        `reference` has the shape of `rows`, or is one row [width] for all. Scores are of the
        difference. The rest is as for `explain`.
        """
        job = self._connection.explain_jobs.explain_difference(
            rows, reference, site, nla, **options
        )
        return await self._transport.run(job, timeout, progress)

    async def reconstruct(
        self,
        texts: str | list[str] | tuple[str, ...],
        site: SiteLike,
        *,
        nla: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Float32Array:
        """The rows that texts explain: [width] of one text, [texts, width] of a list.

        Each is of L2 norm sqrt(width): only its direction has a meaning.
        """
        job = self._connection.reconstruct_jobs.reconstruct(texts, site, nla)
        return await self._transport.run(job, timeout, progress)

    async def edit_vector(
        self,
        original: str,
        edited: str,
        site: SiteLike,
        *,
        nla: str | None = None,
        timeout: float | None = None,
    ) -> Float32Array:
        """The reconstruction of an edited explanation less that of the original: [width].

        Only its direction has a meaning: steer with `Add(site, vector, c, relative=True)`. An
        `ExplanationEdit` in place of the vector does the same without this call.
        """
        edit = ExplanationEdit(original, edited, nla)
        job = self._connection.reconstruct_jobs.edit_vector(edit, site)
        return await self._transport.run(job, timeout)

    @overload
    async def score_explanations(
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
    async def score_explanations(
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
    async def score_explanations(
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
        """How well texts, whoever wrote them, account for rows: a `Score` of one text and one row,
        or a list of one for each.

        `baseline` is what the fraction of variance explained is relative to: its name, or its
        short name beside `nla`; the one called "default", where there is one, when None.
        """
        nla = await self._named(nla, baseline, site, timeout)
        job = self._connection.reconstruct_jobs.score_explanations(rows, texts, site, nla, baseline)
        return await self._transport.run(job, timeout, progress)

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
        """Measures what scores are relative to from rows [rows, width] like those to be scored, and
        stores it in place of any of that name, for your tenant, also over restarts. With
        `shared`, which takes the role operator, every tenant has it that has none of that name.

        All rows go in one call, of at most `Nla.max_rows`. `name` has 1 to 63 lower-case letters,
        digits and hyphens. `baseline="..."` takes it beside `nla`, and `Baseline.name` alone.
        """
        nla = await self._named(nla, name, site, timeout)
        job = self._connection.reconstruct_jobs.set_baseline(rows, site, nla, name, shared)
        return await self._transport.run(job, timeout)

    async def delete_baseline(
        self,
        name: str,
        *,
        nla: str | None = None,
        shared: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Forgets what `set_baseline` stored under a name, whole or short beside `nla`; with
        `shared`, which takes the role operator, that of every tenant. Raises `NotFound`."""
        nla = await self._named(nla, name, None, timeout)
        request = pb.DeleteExplanationBaselineRequest(name=baseline_name(name, nla), shared=shared)
        await self._transport.response("DeleteExplanationBaseline", request, timeout)

    async def _named(
        self, nla: str | None, baseline: str | None, site: SiteLike | None, timeout: float | None
    ) -> str | None:
        """The NLA; the only one, where none is given beside the short name of a baseline."""
        if nla is not None or not is_short(baseline):
            return nla
        return only_nla(await self.models(timeout=timeout), self._connection.model, site).id
