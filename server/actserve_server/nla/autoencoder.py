"""A natural language autoencoder (NLA): rows into words by its AV, and back by its AR."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Finished, Run, Tokens
from actserve_server.domain.sites import Site
from actserve_server.engine.closing import close_all
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.merge import merge
from actserve_server.nla.claims import sentences, without
from actserve_server.nla.explanations import (
    Asking,
    Claim,
    Consumed,
    ExplainEvent,
    Explanation,
    Partial,
    Score,
)
from actserve_server.nla.flags import flags, usual_norm
from actserve_server.nla.gate import Gate
from actserve_server.nla.parsing import parse
from actserve_server.nla.profile import AddAtBlock, Baseline, NlaProfile
from actserve_server.nla.reconstructor import Reconstructor
from actserve_server.nla.recurrence import with_recurrence
from actserve_server.nla.scores import score
from actserve_server.nla.verbalizer import Verbalizer
from actserve_server.nla.verbalizer_prompts import VerbalizerPrompt

MAX_IN_FLIGHT = 4096
"""Explanations of one call that vLLM is given at once; it runs as many of them as fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NlaInfo:
    """A loaded NLA and what one call may ask of it at most."""

    id: str
    model_id: str
    """Of the model that it explains."""
    profile: NlaProfile
    max_rows: int = 4096
    max_samples: int = 64

    @property
    def max_tokens(self) -> int:
        """Tokens of one explanation; zero without an AV."""
        verbalizer = self.profile.verbalizer
        return verbalizer.sampling.max_tokens if verbalizer else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A row being explained."""

    index: int
    vector: np.ndarray
    norm: float
    usual_norm: float | None
    position: int | None
    id: str
    """What the ids of its runs begin with."""


class Explain(Protocol):
    """What explains the rows of a call that was let in."""

    def __call__(
        self,
        rows: np.ndarray,
        positions: Sequence[int] | None = None,
        *,
        differences: bool = False,
    ) -> AsyncGenerator[ExplainEvent, None]:
        """Explains rows, float32 [rows, width] of `NlaInfo.profile.width`, finite and none zero:
        many in flight at once, events as they come. `differences` says that they are no
        activations, so that nothing is known of their usual norm. Closing the stream aborts all."""
        ...


class Autoencoder:
    """Either half may be missing."""

    def __init__(
        self,
        info: NlaInfo,
        verbalizer: Verbalizer | None,
        reconstructor: Reconstructor | None,
        gate: Gate | None = None,
    ) -> None:
        self.info = info
        self.verbalizer = verbalizer
        self._reconstructor = reconstructor
        self.gate = gate or Gate()

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def site(self) -> Site:
        """Where the rows come from that it explains."""
        return self.info.profile.site

    @asynccontextmanager
    async def asked(
        self, run_id: str, asking: Asking, consumed: Consumed
    ) -> AsyncGenerator[Explain, None]:
        """Lets a call in, to its end: what explains its rows, once.

        Raises FEATURE_DISABLED if a half is missing that is asked for, QUESTION_INVALID, and what
        the gate says.
        """
        verbalizer = self._av()
        if asking.score or asking.best or asking.leave_one_out:
            self._ar()
        async with self.gate.call():
            # In a thread: a question may be long, and must not hold up the event loop.
            prompt = await off_loop(verbalizer.prompt, asking)

            def explain(
                rows: np.ndarray,
                positions: Sequence[int] | None = None,
                *,
                differences: bool = False,
            ) -> AsyncGenerator[ExplainEvent, None]:
                norms = np.linalg.norm(rows.astype(np.float64), axis=1)
                usual = None if differences else usual_norm(norms, asking.baseline)
                items = [
                    _Row(
                        index=index,
                        vector=vector,
                        norm=float(norms[index]),
                        usual_norm=usual,
                        position=None if positions is None else int(positions[index]),
                        id=f"{run_id}-{index}",
                    )
                    for index, vector in enumerate(rows)
                ]
                return self._explain(items, prompt, asking, consumed)

            yield explain

    async def explain(
        self,
        run_id: str,
        rows: np.ndarray,
        asking: Asking,
        consumed: Consumed,
        positions: Sequence[int] | None = None,
    ) -> AsyncGenerator[ExplainEvent, None]:
        """`asked`, and the rows at once."""
        async with (
            self.asked(run_id, asking, consumed) as explain,
            aclosing(explain(rows, positions)) as events,
        ):
            async for event in events:
                yield event

    async def _explain(
        self, rows: Sequence[_Row], prompt: VerbalizerPrompt, asking: Asking, consumed: Consumed
    ) -> AsyncGenerator[ExplainEvent, None]:
        held: list[Explanation] = []
        sources = [lambda row=row: self._row(row, prompt, asking, consumed) for row in rows]
        parallel = max(1, MAX_IN_FLIGHT // asking.samples)
        async with aclosing(merge(sources, parallel)) as events:
            async for _, event in events:
                # Recurrence takes the explanations of neighbours.
                if asking.neighbor_distance and isinstance(event, Explanation):
                    held.append(event)
                else:
                    yield event
        for explanation in await off_loop(with_recurrence, held, asking.neighbor_distance):
            yield explanation

    async def _row(
        self, row: _Row, prompt: VerbalizerPrompt, asking: Asking, consumed: Consumed
    ) -> AsyncGenerator[ExplainEvent, None]:
        """One row: its samples side by side, and of these the best if that is asked for."""
        best: Explanation | None = None
        vector = self._av().vector(row.vector)

        def source(sample: int) -> Callable[[], AsyncGenerator[ExplainEvent, None]]:
            number = row.index * asking.samples + sample
            run = replace(
                self._av().run(f"{row.id}-{sample}", vector, prompt, asking, number),
                tenant=consumed.principal.tenant,
            )
            return lambda: self._sample(row, sample, run, asking, consumed)

        sources = [source(sample) for sample in range(asking.samples)]
        async with aclosing(merge(sources, len(sources))) as events:
            async for _, event in events:
                if asking.best and isinstance(event, Explanation):
                    best = event if best is None else max(best, event, key=_cosine)
                else:
                    yield event
        if best is not None:
            yield await self._tried(best, row, asking, consumed)

    async def _sample(
        self, row: _Row, number: int, run: Run, asking: Asking, consumed: Consumed
    ) -> AsyncGenerator[ExplainEvent, None]:
        raw = self._av().profile.prefill
        consumed.prompt_tokens += len(run.token_ids)
        async with aclosing(self._av().engine.run(run)) as events:
            async for event in events:
                match event:
                    case Tokens():
                        raw += event.text
                        if asking.partial and event.text:
                            yield Partial(row.index, number, event.text)
                    case Finished():
                        consumed.output_tokens += event.output_tokens
                        explanation = self._explanation(row, number, raw, run, event)
                        if asking.score or asking.best:
                            found = await self._score_one(
                                f"{run.id}-ar", explanation.text, row, asking, consumed
                            )
                            explanation = replace(explanation, score=found)
                        if not asking.best:
                            explanation = await self._tried(explanation, row, asking, consumed)
                        yield explanation

    def _explanation(
        self, row: _Row, number: int, raw: str, run: Run, finished: Finished
    ) -> Explanation:
        profile = self._av().profile
        text, parsed = parse(raw, profile.form)
        injections = len(run.placements)
        if isinstance(profile.injection, AddAtBlock):
            injections = finished.interventions[0].rows
        return Explanation(
            row=row.index,
            sample=number,
            text=text,
            finish_reason=finished.reason,
            output_tokens=finished.output_tokens,
            injections=injections,
            norm=row.norm,
            position=row.position,
            flags=flags(
                text=text,
                parsed=parsed,
                finish_reason=finished.reason,
                norm=row.norm,
                usual_norm=row.usual_norm,
                position=row.position,
                marker=profile.slot.text,
            ),
        )

    async def _tried(
        self, explanation: Explanation, row: _Row, asking: Asking, consumed: Consumed
    ) -> Explanation:
        """With its sentences, and if that is asked for each left out in turn."""
        if not asking.leave_one_out and not asking.neighbor_distance:
            return explanation
        text, spans = explanation.text, sentences(explanation.text)
        claims = [Claim(start=start, end=end) for start, end in spans]
        if asking.leave_one_out and len(spans) > 1:
            run_id = f"{row.id}-{explanation.sample}-ar"
            whole = explanation.score or await self._score_one(run_id, text, row, asking, consumed)
            for number, span in enumerate(spans):
                rest = await self._score_one(
                    f"{run_id}-{number}", without(text, span), row, asking, consumed
                )
                if whole and rest:
                    claims[number] = _worth(claims[number], whole, rest)
        return replace(explanation, claims=tuple(claims))

    async def _score_one(
        self, run_id: str, text: str, row: _Row, asking: Asking, consumed: Consumed
    ) -> Score | None:
        """None for a text that the AR cannot be asked about: what an AV writes is no one's fault,
        and must not end the call."""
        try:
            (ids,) = await self._ar().prompts([text])
            reconstruction = await self._ar().row(run_id, ids, consumed)
        except ActserveError as error:
            if error.reason in (Reason.FIELD_INVALID, Reason.PROMPT_TOO_LONG):
                return None
            raise
        (found,) = score(row.vector[None], reconstruction[None], asking.baseline)
        return found

    @asynccontextmanager
    async def reading(
        self, run_id: str, texts: Sequence[str], consumed: Consumed
    ) -> AsyncGenerator[AsyncGenerator[tuple[int, np.ndarray], None], None]:
        """Lets a call in, to its end: the rows of its texts, (index of the first, float32
        [rows, width] of L2 norm sqrt(width)), in order.

        Raises FEATURE_DISABLED without an AR, what the gate says, and PROMPT_TOO_LONG or
        FIELD_INVALID for a text that the AR cannot be asked about.
        """
        reconstructor = self._ar()
        async with self.gate.call():
            prompts = await reconstructor.prompts(texts)
            async with aclosing(reconstructor.rows(run_id, prompts, consumed)) as blocks:
                yield blocks

    async def reconstruct(
        self, run_id: str, texts: Sequence[str], consumed: Consumed
    ) -> np.ndarray:
        """`reading`, all rows together."""
        async with self.reading(run_id, texts, consumed) as blocks:
            return np.concatenate([block async for _, block in blocks])

    async def score(
        self,
        run_id: str,
        rows: np.ndarray,
        texts: Sequence[str],
        baseline: Baseline | None,
        consumed: Consumed,
    ) -> list[Score]:
        """How well each text accounts for its row, float32 [rows, width]."""
        made = await self.reconstruct(run_id, texts, consumed)
        return await off_loop(score, rows, made, baseline)

    async def edit(self, run_id: str, original: str, edited: str, consumed: Consumed) -> np.ndarray:
        """AR(edited) - AR(original), float32 [width]: an edited explanation as a steering vector
        (Fraser-Taliente et al., 2026)."""
        before, after = await self.reconstruct(run_id, (original, edited), consumed)
        return after - before

    async def check_health(self) -> None:
        """Raises ENGINE_DEAD while one of its engines is dead."""
        await asyncio.gather(*(half.engine.check_health() for half in self._halves()))

    async def close(self) -> None:
        """Both engines at once."""
        await close_all(*(half.engine for half in self._halves()))

    def _halves(self) -> Iterator[Verbalizer | Reconstructor]:
        return (half for half in (self.verbalizer, self._reconstructor) if half is not None)

    def _av(self) -> Verbalizer:
        if self.verbalizer is None:
            raise self._missing("verbalizer (AV)", "explain")
        return self.verbalizer

    def _ar(self) -> Reconstructor:
        if self._reconstructor is None:
            raise self._missing("reconstructor (AR)", "reconstruct or score")
        return self._reconstructor

    def _missing(self, half: str, purpose: str) -> ActserveError:
        return ActserveError(
            Reason.FEATURE_DISABLED,
            f"the NLA {self.info.id} was loaded without a {half}, so it cannot {purpose}; start "
            "the server with a whole pair",
            field=("nla",),
            metadata={"nla": self.info.id},
        )


def _cosine(explanation: Explanation) -> float:
    return explanation.score.cosine if explanation.score else -np.inf


def _worth(claim: Claim, whole: Score, rest: Score) -> Claim:
    drop = None
    if whole.variance_explained is not None and rest.variance_explained is not None:
        drop = whole.variance_explained - rest.variance_explained
    return replace(
        claim,
        mse_increase=rest.normalized_mse - whole.normalized_mse,
        variance_explained_drop=drop,
    )
