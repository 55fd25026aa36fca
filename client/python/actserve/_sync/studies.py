"""Studies: the questions that are asked most, each in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, SupportsIndex, overload

from typing_extensions import Unpack

from actserve._checks import given, several
from actserve._patch_jobs import patch_grid, patch_job, patched_positions
from actserve._prompt_lists import OnError
from actserve._signatures import spelled_out
from actserve._study_results import (
    attention_map,
    checked_answers,
    chosen_layers,
    compared_tokens,
    comparison,
    logit_lens,
    scored,
    single_prompt,
)
from actserve._sync.kept import Keeping
from actserve._sync.runs import Runs
from actserve.attention import Attention, Heads
from actserve.errors import ActserveError
from actserve.options import InterveneOfEach
from actserve.positions import Positions
from actserve.predictions import Predict
from actserve.prompts import P, Prompt, Prompts
from actserve.sampling import Sampling
from actserve.sites import SiteLike, parse_sites, plain_sites
from actserve.steering_vectors import Intervene
from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, TextScore
from actserve.tokens import TokenLike, checked_tokens

_COMPARED_TOKENS = 40


class Studies(Runs, Keeping):
    """What a prompt would say at each depth, what attends to what, what matters where."""

    def logit_lens(
        self,
        prompt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = "resid_post.*",
        *,
        top_k: int = 5,
        tokens: TokenLike | Sequence[TokenLike] = (),
        positions: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> LogitLens:
        """What the model would say next at each depth, read off the residual stream.

        - `sites`: residual stream sites, and `final_norm` for what it does say, which is what the
          last `resid_post` gives too.
        - `top_k`: the likeliest tokens to report at each.
        - `tokens`: tokens to report on in any case, by id or text: `lens.logprobs`.

            lens = client.logit_lens("The capital of France is", tokens=" Paris")
            lens.top_tokens[:, -1, 0]  # what comes next, by layer
            lens.logprobs[:, -1, 0]  # of " Paris"
        """
        asked = checked_tokens(tokens)
        predict = Predict(sites, positions, top_k=top_k, token_ids=asked)
        acts = self.fetch(
            single_prompt(prompt), predictions=predict, intervene=intervene, timeout=timeout
        )
        return logit_lens(acts, asked)

    def attention(
        self,
        prompt: Prompt,
        layers: SupportsIndex | Sequence[SupportsIndex] | Literal["all"] = "all",
        heads: Heads = "all",
        *,
        queries: Positions = "all",
        intervene: Intervene | Iterable[Intervene] | None = (),
        timeout: float | None = None,
    ) -> AttentionMap:
        """How every token attends to those before it: `weights` [layers, heads, queries, keys].

        - `layers`: one or several, or "all"; negative ones count from the last.
        - `heads`: query heads, or "all".
        - `queries`: the positions that attend; see `Positions`.

            patterns = client.attention("The cat sat on the mat. The cat", layers=[5, 9])
            patterns.weights[0, 3]  # [tokens, tokens] of layer 5, head 3
        """
        count = (self._served(timeout)).layer_count
        chosen = chosen_layers(layers, count)
        acts = self.fetch(
            single_prompt(prompt),
            attention=[Attention(layer, heads, queries) for layer in chosen],
            intervene=intervene,
            timeout=timeout,
        )
        return attention_map(acts, chosen)

    def patch(
        self,
        clean: Prompt,
        corrupt: Prompt,
        sites: SiteLike | Iterable[SiteLike] = "resid_post.*",
        positions: Positions = "all",
        *,
        answers: TokenLike | tuple[TokenLike, TokenLike],
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> PatchGrid:
        """Which rows carry the answer: the corrupt prompt is run once for each site and position,
        with the row of the clean prompt in the place of its own. One call, or several where there
        are more runs than the server takes in one.

        - `clean`, `corrupt`: prompts of equally many tokens.
        - `positions`: the positions to patch, one at a time; not by text or turn.
        - `answers`: the token whose log probability is told, or the right one and the wrong one,
          for the difference of their logits.

            grid = client.patch(
                "The capital of France is the city of",
                "The capital of Italy is the city of",
                "resid_post.*",
                answers=(" Paris", " Rome"),
            )
            grid.restored  # [sites, positions], 1 where the clean answer is back
        """
        asked = given(
            sites=parse_sites(sites), tokens=checked_answers(answers), positions=positions
        )
        plain = self._resolved(asked, timeout)
        before, after = self.tokenize([clean, corrupt], timeout=timeout)
        where = patched_positions(plain["positions"], before, after)
        places = plain_sites(plain["sites"])  # Each once, whatever patterns have named.
        limit = (self._served(timeout)).limits.max_items
        job = patch_job(
            self._connection.generate_jobs.model,
            (clean, corrupt),
            [(site, position) for site in places for position in where],
            plain["tokens"],
            limit,
        )
        calls = self._transport.run(job, timeout, progress)
        for name in (name for call in calls for name in call.kept):
            with suppress(ActserveError):  # It expires by itself, and the grid is whole.
                self.delete_kept(name, timeout=timeout)
        return patch_grid(calls, places, where, several(answers))

    @overload
    def score(
        self,
        text: Prompt,
        *,
        intervene: Intervene | Iterable[Intervene] | None = ...,
        timeout: float | None = ...,
        progress: bool | None = ...,
    ) -> TextScore: ...
    @overload
    def score(
        self,
        text: Prompts[P],
        *,
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = ...,
        on_error: Literal["raise"] = ...,
        timeout: float | None = ...,
        progress: bool | None = ...,
    ) -> list[TextScore]: ...
    @overload
    def score(
        self,
        text: Prompts[P],
        *,
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = ...,
        on_error: Literal["return"],
        timeout: float | None = ...,
        progress: bool | None = ...,
    ) -> list[TextScore | ActserveError]: ...
    def score(
        self,
        text: Any,
        *,
        intervene: Any = (),
        on_error: OnError = "raise",
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Any:
        """How likely a text is to the model, token by token, or each of a list of texts. Nothing is
        sampled. Arguments are as for `fetch`.

            good, bad = client.score(["Cats chase mice.", "Cats chase ice."])
            good.perplexity, bad.logprobs
        """
        acts = self.fetch(
            text,
            predictions=Predict(next_token=True),
            intervene=intervene,
            on_error=on_error,
            timeout=timeout,
            progress=progress,
        )
        return scored(acts)

    @spelled_out(Sampling)
    def compare(
        self,
        prompt: Prompt,
        intervene: Intervene | Iterable[Intervene],
        *,
        next_tokens: int = 10,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Comparison:
        """What the model says plain and steered, and what steering makes likelier right after the
        prompt. Greedy and of 40 tokens, unless `temperature` and `max_tokens` are given.

        - `next_tokens`: how many of the likeliest tokens of each run to compare.
        - `max_tokens` and the rest of `Sampling` are as for `generate`.

            client.compare("I think the movie was", joy * 4, max_tokens=20)
        """
        one = single_prompt(prompt)
        both: list[str] = [one, one]  # Or prompts of any other kind.
        steering = [[], [intervene] if not isinstance(intervene, Iterable) else [*intervene]]
        sampling.setdefault("temperature", 0.0)
        sampling.setdefault("max_tokens", _COMPARED_TOKENS)
        plain, steered = self.generate(
            both, intervene=steering, timeout=timeout, progress=False, **sampling
        )
        first = Predict(positions="last", top_k=next_tokens)
        likely = self.fetch(
            both, intervene=steering, predictions=first, timeout=timeout, progress=False
        )
        tokens = compared_tokens(likely)
        second = Predict(positions="last", token_ids=list(tokens))
        acts = self.fetch(
            both, intervene=steering, predictions=second, timeout=timeout, progress=False
        )
        return comparison(plain, steered, tokens, likely, acts)
