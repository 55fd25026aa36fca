"""Sweeps: many prompts under many interventions, in one call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from os import PathLike
from typing import Any

from typing_extensions import Unpack

from actserve._async.base import AsyncBase
from actserve._async.vectors import AsyncVectors
from actserve._checks import given
from actserve._progress import counting
from actserve._signatures import spelled_out
from actserve._sweep_calls import SweepCall
from actserve._sweep_files import PartialFile
from actserve._sweep_requests import (
    AskedSweep,
    asked_sweep,
    checked_answers,
    checked_scores,
    checked_variants,
)
from actserve._vector_requests import VectorRequests
from actserve.errors import InvalidRequest
from actserve.positions import Positions
from actserve.probes import Probe
from actserve.prompts import Prompt
from actserve.sampling import Sampling
from actserve.sites import SiteLike
from actserve.sweeps import Sweep, SweepCell, Variant


class AsyncSweeps(AsyncBase):
    """Dose-response curves, heat maps, and the cells they are made of."""

    @spelled_out(Sampling)
    async def sweep(
        self,
        prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
        intervene: Any = None,
        *,
        coefficients: Sequence[float] = (),
        sites: SiteLike | Iterable[SiteLike] = (),
        positions: Sequence[Positions] = (),
        variants: Mapping[str, Variant] | Sequence[Variant] | None = None,
        baseline: bool = True,
        answers: Mapping[str, str] | Sequence[str] = (),
        scores: Mapping[str, Probe] | None = None,
        perplexity: bool = False,
        afresh: bool = False,
        partial: str | PathLike[str] | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Sweep:
        """Runs every prompt under every intervention of a grid, and returns the table of what came
        of each. All of it runs as one batch on the server, which stores cells that are served: an
        equal sweep later has them at once.

        - `prompts`: one, several, or several by keys, which name their cells.
        - `intervene`, `coefficients`, `sites`, `positions`: what to do, and the grid of what to try
          of it, as `Variant` says: "joy" is a stored vector, which is added, at its own sites
          without `sites`.
        - `variants`: in their place, several such, by name.
        - `baseline`: whether to run the model as it is, too, as the variant "plain".
        - `answers`: texts that might come next, alone or by names of yours, whose log probabilities
          to tell.
        - `scores`: `Probe`s by name, by which to score what is read and generated.
        - `perplexity`: whether to tell how unlike itself the model was made; only of what is
          generated, and takes a run more for each cell.
        - `afresh`: whether to run also the cells that the server has stored.
        - `partial`: a file into which cells are written as they come; where it is there already,
          the sweep goes on from it. Delete it when the table is safe.
        - `timeout`: seconds for all of it; a day when None. A connection that is lost is made
          again, and the sweep goes on where it was.
        - `progress`: a bar on standard error; by default on a terminal, with rich.
        - `max_tokens` and the rest of `Sampling`: how to generate, greedily unless `temperature` is
          given; every cell has one sample. Nothing is generated where answers or scores are asked
          for and no parameter is given.

        A cell that fails has its `error`, and the others go on.

            sweep = client.sweep(
                ["I think the movie was", "My day was"],
                "joy",
                coefficients=[-2, -1, 0, 1, 2],
                sites="resid_post.5:20:5",
                answers={"good": " good", "bad": " bad"},
            )
            sweep.plot("good").figure.savefig("joy.png")
        """
        call, file = await self._swept(
            prompts,
            intervene,
            coefficients,
            sites,
            positions,
            variants=variants,
            baseline=baseline,
            answers=answers,
            scores=scores,
            perplexity=perplexity,
            afresh=afresh,
            partial=partial,
            timeout=timeout,
            sampling=given(**sampling),
        )
        with counting("sweep", call.cells, progress) as advance:
            async with aclosing(self._run(call, file, timeout)) as cells:
                async for _ in cells:
                    advance(1)
        return call.result()

    @spelled_out(Sampling)
    async def sweep_iter(
        self,
        prompts: Prompt | Sequence[Prompt] | Mapping[str, Prompt],
        intervene: Any = None,
        *,
        coefficients: Sequence[float] = (),
        sites: SiteLike | Iterable[SiteLike] = (),
        positions: Sequence[Positions] = (),
        variants: Mapping[str, Variant] | Sequence[Variant] | None = None,
        baseline: bool = True,
        answers: Mapping[str, str] | Sequence[str] = (),
        scores: Mapping[str, Probe] | None = None,
        perplexity: bool = False,
        afresh: bool = False,
        partial: str | PathLike[str] | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerator[SweepCell, None]:
        """The cells of a sweep as they come, in any order, each once; those of a `partial` file
        first. Arguments are as for `sweep`. Leaving the loop early cancels the call.

            for cell in client.sweep_iter(prompts, "joy", coefficients=[1, 2], sites=site):
                print(cell.coefficient, cell.text)
        """
        call, file = await self._swept(
            prompts,
            intervene,
            coefficients,
            sites,
            positions,
            variants=variants,
            baseline=baseline,
            answers=answers,
            scores=scores,
            perplexity=perplexity,
            afresh=afresh,
            partial=partial,
            timeout=timeout,
            sampling=given(**sampling),
        )
        async with aclosing(self._run(call, file, timeout)) as cells:
            async for cell in cells:
                yield cell

    async def _swept(
        self,
        prompts: Any,
        intervene: Any,
        coefficients: Any,
        sites: Any,
        positions: Any,
        *,
        variants: Any,
        baseline: bool,
        answers: Any,
        scores: Any,
        perplexity: bool,
        afresh: bool,
        partial: str | PathLike[str] | None,
        timeout: float | None,
        sampling: dict[str, Any],
    ) -> tuple[SweepCall, PartialFile | None]:
        """The call of a sweep, and its partial file."""
        one = Variant(intervene, coefficients, sites, positions)
        tried = checked_variants(variants, one if one.is_given else None, baseline)
        named = checked_answers(answers)
        asked: dict[str, Any] = {
            "scores": checked_scores(scores),
            "sampling": {"temperature": 0.0, **sampling},
            "variants": await self._placed(tried, timeout),
        }
        asked = await self._resolved(asked, timeout)
        wanted = any(each is not None for each in sampling.values())
        found: AskedSweep = asked_sweep(
            self._connection.model,
            prompts,
            answers=named,
            generate=wanted or perplexity or not (named or asked["scores"]),
            perplexity=perplexity,
            afresh=afresh,
            **asked,
        )
        file = None if partial is None else PartialFile(partial, found.request)
        return SweepCall(found, file.cells if file else ()), file

    async def _placed(
        self, variants: Mapping[str, Variant], timeout: float | None
    ) -> dict[str, Variant]:
        """The variants with stored vectors that are named alone added at their own sites."""
        stored = AsyncVectors(
            self._transport, self._resolved, VectorRequests(self._connection.model)
        )
        placed: dict[str, Variant] = {}
        for key, variant in variants.items():
            name = variant.named
            intervene = (
                variant.intervene if name is None else await stored.get(name, timeout=timeout)
            )
            placed[key] = replace(variant, intervene=intervene)
        return placed

    async def _run(
        self, call: SweepCall, file: PartialFile | None, timeout: float | None
    ) -> AsyncGenerator[SweepCell, None]:
        """All cells: those that an earlier call had already received come first."""
        try:
            for had in call.had:
                yield had
            async with aclosing(self._transport.resumed(call, timeout)) as cells:
                async for sent, cell in cells:
                    if file:
                        file.add(sent)
                    yield cell
        except InvalidRequest as error:
            if file and error.reason == "RESUME_TOKEN_INVALID":
                error.message += f"; delete {file.path}, which is of a sweep that is no longer this"
            raise
        finally:
            if file:
                file.close()
