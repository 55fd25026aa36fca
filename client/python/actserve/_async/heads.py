"""Heads: what each does over a corpus, and what becomes of an answer without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, SupportsIndex

import numpy as np

from actserve._async.kept import AsyncKeeping
from actserve._async.runs import AsyncRuns
from actserve._checks import given, several
from actserve._head_jobs import (
    ablation,
    changing_job,
    chosen_heads,
    head_grid,
    heads_job,
    transplant,
)
from actserve._names import short
from actserve._patch_jobs import patched_positions
from actserve._prompt_lists import OnError, intervene_of_each
from actserve._study_results import checked_answers, chosen_layers
from actserve.attention import Heads
from actserve.attributions import LogitAttribution, Target
from actserve.errors import ActserveError
from actserve.heads import HeadGrid, HeadTable, MeasuredPrompt, Patterns
from actserve.models import query_heads
from actserve.options import InterveneOfEach, PositionsOfEach
from actserve.positions import Positions
from actserve.prompts import Prompt, Prompts
from actserve.steering_vectors import Intervene
from actserve.tokens import TokenLike


class AsyncHeadStudies(AsyncRuns, AsyncKeeping):
    """Scores of heads, and grids in which one is changed at a time."""

    async def heads(
        self,
        prompts: Prompt | Prompts[Any],
        layers: SupportsIndex | Sequence[SupportsIndex] | Literal["all"] = "all",
        *,
        positions: Positions | PositionsOfEach = "all",
        intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None = (),
        answers: Target | None = None,
        top_tokens: int = 10,
        patterns: Patterns | None = None,
        adapter: str | None = None,
        on_error: OnError = "raise",
        timeout: float | None = None,
    ) -> HeadTable:
        """What every head of some layers attends to over a corpus, in one call: previous-token,
        induction, duplicate-token, self and first-token scores, entropy, distance, and the tokens
        by which most attention passes.

        - `prompts`: one, or a list of as many as `Model.limits.max_items`.
        - `layers`: one or several, or "all"; negative ones count from the last.
        - `positions`: the queries that count; see `Positions`. A list of such, one for each prompt,
          is also possible.
        - `answers`: a token, or the right one and the wrong one, for `table.attribution`: how much
          `z` of each head adds to its logit at the last token, read in a second call.
        - `top_tokens`: how many tokens to tell of each head, 0 to 64.
        - `patterns`: `Patterns()` for the largest weights of every query, which
          `table.export_headvis` writes; about 25 kB for 256 tokens of a head.
        - `intervene`, `adapter`, `on_error`, `timeout`: as for `fetch`. With `on_error="return"` a
          prompt that fails counts nowhere, and `table.prompts` has its error.

            table = client.heads(["The cat sat. The cat sat.", "one two one two"])
            table.top("induction", 3)
        """
        served = await self._served(timeout)
        chosen = chosen_layers(layers, served.layer_count)
        asked = await self._resolved(given(intervene=intervene, positions=positions), timeout)
        job = heads_job(
            self._connection.model,
            prompts,
            chosen,
            query_heads(served),
            top_tokens=top_tokens,
            patterns=patterns,
            on_error=on_error,
            adapter=adapter,
            **asked,
        )
        table: HeadTable = await self._transport.run(job, timeout)
        table = replace(table, model=short(served.name))
        if answers is None:
            return table
        found = await self._attribution(table, answers, asked["intervene"], adapter, timeout)
        return replace(table, attribution=found)

    async def ablate_heads(
        self,
        prompt: Prompt,
        layers: SupportsIndex | Sequence[SupportsIndex] | Literal["all"] = "all",
        heads: Heads = "all",
        positions: Positions = "all",
        *,
        answers: TokenLike | tuple[TokenLike, TokenLike],
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> HeadGrid:
        """Which heads an answer needs: the prompt is run once for each head, with zero in the place
        of its `z` at all the positions. One call, or several where there are more runs than the
        server takes in one.

        - `positions`: where, all at once; not by text or turn.
        - `answers`: the token whose log probability is told, or the right one and the wrong one,
          for the difference of their logits.

            grid = client.ablate_heads("one two three one two", answers=" three")
            grid.changed  # [layers, heads]
        """
        return await self._grid(
            (prompt, prompt), layers, heads, positions, answers, timeout, progress, patched=False
        )

    async def patch_heads(
        self,
        clean: Prompt,
        corrupt: Prompt,
        layers: SupportsIndex | Sequence[SupportsIndex] | Literal["all"] = "all",
        heads: Heads = "all",
        positions: Positions = "all",
        *,
        answers: TokenLike | tuple[TokenLike, TokenLike],
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> HeadGrid:
        """Which heads carry an answer: the corrupt prompt is run once for each head, with its `z`
        of the clean prompt in the place of its own at all the positions. Arguments are as for
        `ablate_heads` and `patch`.

            grid = client.patch_heads(
                "The capital of France is the city of",
                "The capital of Italy is the city of",
                answers=(" Paris", " Rome"),
            )
            grid.restored  # [layers, heads], 1 where the clean answer is back
        """
        return await self._grid(
            (clean, corrupt), layers, heads, positions, answers, timeout, progress, patched=True
        )

    async def _grid(
        self,
        prompts: tuple[Prompt, Prompt],
        layers: Any,
        heads: Any,
        positions: Positions,
        answers: Any,
        timeout: float | None,
        progress: bool | None,
        *,
        patched: bool,
    ) -> HeadGrid:
        served = await self._served(timeout)
        chosen = chosen_layers(layers, served.layer_count)
        columns = chosen_heads(heads, query_heads(served))
        asked = given(tokens=checked_answers(answers), positions=positions)
        plain = await self._resolved(asked, timeout)
        before, after = await self.tokenize([*prompts], timeout=timeout)
        where = patched_positions(plain["positions"], before, after)
        change = transplant if patched else ablation
        job = changing_job(
            self._connection.generate_jobs.model,
            prompts,
            [change(layer, head, where) for layer in chosen for head in columns],
            chosen if patched else (),
            where,
            plain["tokens"],
            served.limits.max_items,
        )
        calls = await self._transport.run(job, timeout, progress)
        for name in (name for call in calls for name in call.kept):
            with suppress(ActserveError):  # It expires by itself, and the grid is whole.
                await self.delete_kept(name, timeout=timeout)
        return head_grid(calls, chosen, columns, where, several(answers), patched=patched)

    async def _attribution(
        self,
        table: HeadTable,
        answers: Target,
        intervene: Any,
        adapter: str | None,
        timeout: float | None,
    ) -> Any:
        """How much each head adds to the answer, the mean over the prompts that did not fail."""
        good = [
            (index, [*each.prompt.token_ids])
            for index, each in enumerate(table.prompts)
            if isinstance(each, MeasuredPrompt)
        ]
        shape = table.entropy.shape
        if not good:
            return np.full(shape, np.nan, np.float32)
        if edits := intervene_of_each(intervene, len(table.prompts)):
            intervene = [edits[index] for index, _ in good]
        direct = LogitAttribution([f"z.{layer}" for layer in table.layers], [answers], "last")
        acts = await self.fetch(
            [prompt for _, prompt in good],
            readouts={"direct": direct},
            intervene=intervene,
            adapter=adapter,
            timeout=timeout,
            progress=False,
        )
        rows = [
            [each.readouts["direct"][f"z.{layer}"][0, :, 0] for layer in table.layers]
            for each in acts
        ]
        return np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)
