"""Running the model: what is read of prompts, and what it writes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, overload

from typing_extensions import Unpack

from actserve._checks import given
from actserve._monitor_requests import monitors_named
from actserve._prompt_lists import OnError
from actserve._signatures import spelled_out
from actserve._sync.base import Base
from actserve._sync.streams import Stream
from actserve.attention import Attention
from actserve.errors import ActserveError
from actserve.events import Event
from actserve.kept import Keep
from actserve.means import Label, LabelMeans, SecondMoments
from actserve.monitors import Monitor, ScoreDetail
from actserve.options import (
    CorpusOptions,
    FetchOptions,
    GenerateOptions,
    InterveneOfEach,
    PositionsOfEach,
    StreamOptions,
)
from actserve.positions import Positions
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.prompts import P, Prompt, Prompts
from actserve.readouts import Readout, Reduction
from actserve.results import Activations, Generation, Tokenized
from actserve.sampling import Sampling
from actserve.sites import SiteLike, parse_sites
from actserve.steering_vectors import Intervene
from actserve.tensors import ElementType


class Runs(Base):
    """Fetching and generating."""

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
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[FetchOptions],
    ) -> list[Activations]: ...
    @overload
    def fetch(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        on_error: Literal["return"],
        **options: Unpack[FetchOptions],
    ) -> list[Activations | ActserveError]: ...
    def fetch(
        self,
        prompt: Any,
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        positions: Positions | PositionsOfEach = "all",
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        predictions: Predict | None = None,
        attention: Attention | Iterable[Attention] = (),
        readouts: Mapping[str, Readout] | None = None,
        projection: Projection | None = None,
        reduce: Reduction | None = None,
        keep: Keep | None = None,
        element_type: ElementType | None = None,
        adapter: str | None = None,
        on_error: OnError = "raise",
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Any:
        """The activations of a prompt, or of each of a list of prompts, in order.

        - `sites`: names such as `"resid_post.15"`, patterns of layers such as `"resid_post.*"` or
          `"resid_post.5:20:5"`, TransformerLens names, or `Site`s; may be left out where
          predictions or attention are asked for.
        - `positions`: the tokens whose rows to return; see `Positions`. A list of such, one for
          each prompt, is also possible.
        - `intervene`: interventions to apply, in order. A list of lists has those of each prompt.
        - `predictions`: a `Predict`, for `activations.predictions`.
        - `attention`: one `Attention` or several, for `activations.attention`.
        - `readouts`: more to read in the same forward pass, by names of yours: a `Read`, a
          `Predict`, an `Attention`, an `AttentionSummary` or a `LogitAttribution` each.
          `activations.readouts` has what they give.
        - `projection`: a `Projection`, whose components come in place of the rows.
        - `reduce`: "last", "mean" or "max", for one row in place of those of all positions, after
          any projection.
        - `keep`: a `Keep`, by which the rows also stay on the server, as `activations.kept`.
        - `element_type`: how rows travel; by default the model's own, which loses nothing, and f32
          for what is computed from them. The arrays are float32 in any case.
        - `adapter`: the LoRA adapter that the model runs with, one of `Model.adapters`; none if
          it is None.
        - `on_error`: "raise" stops at the first prompt that is refused or fails; "return" puts the
          error of such a prompt into the list. A server that cannot be reached raises in either
          case.
        - `timeout`: seconds that each call may take; a list is many calls.
        - `progress`: a bar on standard error; by default for a list, on a terminal, with rich.

            acts = client.fetch("The capital of France is", "resid_post.15")
            acts["resid_post.15"]  # float32 [tokens, width]
        """
        asked = given(
            sites=parse_sites(sites),
            positions=positions,
            intervene=intervene,
            predictions=predictions,
            attention=attention,
            readouts=readouts,
            projection=projection,
            reduce=reduce,
            keep=keep,
            element_type=element_type,
            adapter=adapter,
        )
        asked = self._resolved(asked, timeout)
        job = self._connection.fetch_jobs.fetch(prompt, on_error=on_error, **asked)
        return self._transport.run(job, timeout, progress)

    @overload
    def fetch_iter(
        self,
        prompts: Iterable[Prompt],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        keys: Iterable[str] | None = ...,
        after: str | None = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[CorpusOptions],
    ) -> Iterator[Activations]: ...
    @overload
    def fetch_iter(
        self,
        prompts: Iterable[Prompt],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        keys: Iterable[str] | None = ...,
        after: str | None = ...,
        on_error: Literal["return"],
        **options: Unpack[CorpusOptions],
    ) -> Iterator[Activations | ActserveError]: ...
    def fetch_iter(
        self,
        prompts: Iterable[Prompt],
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        keys: Iterable[str] | None = None,
        after: str | None = None,
        positions: Positions | PositionsOfEach = "all",
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        predictions: Predict | None = None,
        attention: Attention | Iterable[Attention] = (),
        readouts: Mapping[str, Readout] | None = None,
        projection: Projection | None = None,
        reduce: Reduction | None = None,
        keep: Keep | None = None,
        element_type: ElementType | None = None,
        adapter: str | None = None,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> Any:
        """The activations of a corpus larger than memory, one prompt after the other, in order.

        Prompts are read from `prompts`, which may be a generator, as results are taken: only those
        of a few calls are in memory at a time. A call that breaks off is made again.

        Prompts are read some calls ahead of the results, so a generator must not wait for one.

        - `keys`: a name for each prompt, which `activations.key` tells; else its number as text.
        - `after`: the key after which to go on, such as that of the last result before a program
          stopped: prompts up to and with it are skipped.
        - The rest is as for `fetch`. With `on_error="return"` the error of a prompt comes in its
          place.

            lines = (line.strip() for line in open("corpus.txt"))
            for acts in client.fetch_iter(lines, "resid_post.15", positions="last"):
                index.add(acts.key, acts["resid_post.15"])
        """
        asked = given(
            sites=parse_sites(sites),
            positions=positions,
            intervene=intervene,
            predictions=predictions,
            attention=attention,
            readouts=readouts,
            projection=projection,
            reduce=reduce,
            keep=keep,
            element_type=element_type,
            adapter=adapter,
        )
        corpus = given(keys=keys, after=after, on_error=on_error)
        return self._fetched(prompts, asked, corpus, timeout)

    def _fetched(
        self, prompts: Any, asked: dict[str, Any], corpus: dict[str, Any], timeout: float | None
    ) -> Generator[Any, None]:
        jobs = self._connection.fetch_jobs
        parts = jobs.parts(prompts, **corpus, **self._resolved(asked, timeout))
        with closing(self._transport.ordered(parts, jobs.in_flight, timeout)) as batches:
            for batch in batches:
                for result in batch:
                    yield result

    def fetch_means(
        self,
        prompts: Prompts[P],
        labels: Sequence[Label],
        sites: SiteLike | Iterable[SiteLike],
        *,
        positions: Positions = "all",
        reduce: Reduction | None = "mean",
        projection: Projection | None = None,
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        second_moments: SecondMoments | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> dict[str, LabelMeans]:
        """The mean rows of each label, in the order in which labels first come. Nothing but the
        means travels.

        - `labels`: one for each prompt. A string labels the prompt; a mapping such as
          `{"name": ByText("Mary"), "verb": [3]}` labels some of its positions.
        - `reduce`: how a prompt becomes one row, which counts once: "mean", "last" or "max" over
          its `positions`. With None every position is a row of its own; labels of positions need
          that.
        - `second_moments`: "variance" or "covariance", for `means[label].variance[site]` [width] or
          `means[label].covariance[site]` [width, width]; they are about the mean, divided by the
          number of rows.
        - The rest is as for `fetch`.

            means = client.fetch_means(texts, labels, "resid_post.15")
            vector = means["liked"]["resid_post.15"] - means["hated"]["resid_post.15"]
        """
        asked = given(
            sites=parse_sites(sites),
            labels=labels,
            intervene=intervene,
            positions=positions,
            projection=projection,
            adapter=adapter,
        )
        asked = self._resolved(asked, timeout)
        job = self._connection.fetch_jobs.fetch_means(
            prompts, reduce=reduce, second_moments=second_moments, **asked
        )
        return self._transport.run(job, timeout, progress)

    @overload
    def generate(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: int,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: None = None,
        on_error: Literal["raise"] = ...,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: int,
        on_error: Literal["raise"] = ...,
        **options: Unpack[GenerateOptions],
    ) -> list[list[Generation]]: ...
    @overload
    def generate(
        self,
        prompt: Prompts[P],
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: None = None,
        on_error: Literal["return"],
        **options: Unpack[GenerateOptions],
    ) -> list[Generation | ActserveError]: ...
    @spelled_out(Sampling)
    def generate(
        self,
        prompt: Any,
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        samples: int | None = None,
        positions: Positions | PositionsOfEach = "all",
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        predictions: Predict | None = None,
        attention: Attention | Iterable[Attention] = (),
        readouts: Mapping[str, Readout] | None = None,
        projection: Projection | None = None,
        reduce: Reduction | None = None,
        keep: Keep | None = None,
        element_type: ElementType | None = None,
        adapter: str | None = None,
        monitors: str | Monitor | Iterable[str | Monitor] = (),
        scores: ScoreDetail | None = None,
        end_user: str | None = None,
        on_error: OnError = "raise",
        timeout: float | None = None,
        progress: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Any:
        """A continuation of a prompt, or of each of a list of prompts, in order.

        - `sites`: what to read meanwhile. It and what comes after it up to `progress` are as for
          `fetch`; what is read is in `generation.activations`.
        - `samples`: samples of each prompt; when given, every prompt's result is a list.
        - `monitors`: monitors to watch it by, besides those that watch it anyway. What their levels
          flag is in `generation.alerts`; what one ends has the `finish_reason` "monitor".
        - `scores`: "sample" for what each monitor scored, in `generation.monitor_scores`; "token"
          for the score as of each token too.
        - `end_user`: for whom the call is made, as you know them; alerts tell it.
        - `max_tokens`, `temperature`, `top_p`, `seed`, `stop` and the rest of `Sampling`: how to
          sample; what is left out is as `Model.default_sampling` says.

            out = client.generate("I think the movie was", max_tokens=20, intervene=joy * 4)
            out.text
        """
        asked = given(
            sites=parse_sites(sites),
            positions=positions,
            intervene=intervene,
            predictions=predictions,
            attention=attention,
            readouts=readouts,
            projection=projection,
            reduce=reduce,
            keep=keep,
            element_type=element_type,
            adapter=adapter,
            monitors=monitors_named(monitors),
            scores=scores,
            end_user=end_user,
            sampling=given(**sampling),
        )
        asked = self._resolved(asked, timeout)
        jobs = self._connection.generate_jobs
        job = jobs.generate(prompt, samples, on_error=on_error, **asked)
        return self._transport.run(job, timeout, progress)

    @overload
    def stream(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: None = None,
        collect: bool = ...,
        **options: Unpack[StreamOptions],
    ) -> Stream[Event, Generation]: ...
    @overload
    def stream(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = ...,
        *,
        samples: int,
        collect: bool = ...,
        **options: Unpack[StreamOptions],
    ) -> Stream[Event, list[Generation]]: ...
    @spelled_out(Sampling)
    def stream(
        self,
        prompt: Any,
        sites: SiteLike | Iterable[SiteLike] = (),
        *,
        samples: int | None = None,
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        predictions: Predict | None = None,
        attention: Attention | Iterable[Attention] = (),
        readouts: Mapping[str, Readout] | None = None,
        projection: Projection | None = None,
        reduce: Reduction | None = None,
        keep: Keep | None = None,
        element_type: ElementType | None = None,
        adapter: str | None = None,
        monitors: str | Monitor | Iterable[str | Monitor] = (),
        scores: ScoreDetail | None = None,
        end_user: str | None = None,
        collect: bool = False,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Any:
        """The events of a generation while it runs: a stream, whose `result()` is what `generate`
        returns.

        - `collect`: whether the result has what was read, too; otherwise only the events have it,
          and it takes no memory.
        - The rest is as for `generate`.

            for event in client.stream("Once upon a time", max_tokens=100):
                if isinstance(event, actserve.Tokens):
                    print(event.text, end="", flush=True)
        """
        asked = given(
            prompt=prompt,
            samples=samples,
            sites=parse_sites(sites),
            positions=positions,
            intervene=intervene,
            predictions=predictions,
            attention=attention,
            readouts=readouts,
            projection=projection,
            reduce=reduce,
            keep=keep,
            element_type=element_type,
            adapter=adapter,
            collect=collect,
            monitors=monitors_named(monitors),
            scores=scores,
            end_user=end_user,
            sampling=given(**sampling),
        )
        return self._stream(self._connection.generate_jobs.streamed, asked, timeout)

    @overload
    def tokenize(self, prompt: Prompt, *, timeout: float | None = ...) -> Tokenized: ...
    @overload
    def tokenize(self, prompt: Prompts[P], *, timeout: float | None = ...) -> list[Tokenized]: ...
    def tokenize(self, prompt: Any, *, timeout: float | None = None) -> Any:
        """A prompt as the model would see it, or each of a list of prompts, in order."""
        return self._transport.run(self._connection.generate_jobs.tokenize(prompt), timeout)
