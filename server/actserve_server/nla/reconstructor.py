"""The activation reconstructor (AR): what row a text describes.

The AR is a language model cut off after the NLA's layer, and a matrix, its value head. A text
becomes a capture of the last token's row, without any final norm; the head maps it to the row that
is meant. Only the direction has a meaning, so rows are given an L2 norm of sqrt(width).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.merge import merge
from actserve_server.nla.explanations import Consumed
from actserve_server.nla.profile import ReconstructorProfile
from actserve_server.nla.scores import normalize

Ids = tuple[int, ...]

BLOCK_ROWS = 64
"""Rows that are handed on together."""


@dataclass(frozen=True, slots=True, eq=False)
class ValueHead:
    """weight @ state + bias: float32 [width, width] and [width]."""

    weight: np.ndarray
    bias: np.ndarray | None = None

    def apply(self, states: np.ndarray) -> np.ndarray:
        """Rows for states, float32 [rows, width]."""
        rows = states @ self.weight.T
        return rows if self.bias is None else rows + self.bias


class Reconstructor:
    """An engine with an AR's weights, its head, and how to ask it."""

    def __init__(
        self,
        engine: AdmittedEngine,
        profile: ReconstructorProfile,
        site: Site,
        head: ValueHead,
        ids: Callable[[str], Ids],
    ) -> None:
        """`site` is the output of the AR's last block; `ids` makes the prompt for a text."""
        self.engine = engine
        self._profile = profile
        self._site = site
        self._head = _Batches(head.apply)
        self._ids = ids

    async def prompts(self, texts: Sequence[str]) -> list[Ids]:
        """The prompts for texts. Raises PROMPT_TOO_LONG for one that the AR's context does not
        hold, and FIELD_INVALID for one that runs into the words after it."""
        # In a thread: texts may be long, and must not hold up the event loop.
        return await off_loop(
            lambda: [self._checked(text, index) for index, text in enumerate(texts)]
        )

    def _checked(self, text: str, index: int) -> Ids:
        field = ("texts", index)
        try:
            ids = self._ids(text)
        except ActserveError as error:
            error.field = field
            raise
        limit = self.engine.info.limits.max_sequence_tokens - 1
        if len(ids) > limit:
            raise ActserveError(
                Reason.PROMPT_TOO_LONG,
                f"the text makes a prompt of {len(ids)} tokens, but the reconstructor takes at "
                f"most {limit}; shorten it",
                field=field,
                metadata={"prompt_tokens": len(ids), "limit": limit},
            )
        return ids

    async def row(self, run_id: str, ids: Ids, consumed: Consumed) -> np.ndarray:
        """The row that the text of a prompt describes, float32 [width] of L2 norm sqrt(width)."""
        consumed.prompt_tokens += len(ids)
        last = Selection(Spans.of([len(ids) - 1]))
        run = Run(
            id=run_id,
            token_ids=ids,
            captures=(Capture((self._site,), last),),
            tenant=consumed.principal.tenant,
        )
        async with aclosing(self.engine.run(run)) as events:
            parts = [event.bits async for event in events if isinstance(event, Rows)]
        (state,) = to_float32(np.concatenate(parts), self.engine.info.element_type)
        if self._profile.normalize_state:
            (state,) = normalize(state[None])
        row = await self._head.apply(state)
        (reconstruction,) = normalize(row[None])
        return reconstruction

    async def rows(
        self, run_id: str, prompts: Sequence[Ids], consumed: Consumed
    ) -> AsyncGenerator[tuple[int, np.ndarray], None]:
        """The rows of prompts, all in flight at once: (index of the first, float32 [rows, width]),
        in order."""

        def source(index: int) -> Callable[[], AsyncGenerator[np.ndarray, None]]:
            async def one() -> AsyncGenerator[np.ndarray, None]:
                yield await self.row(f"{run_id}-{index}", prompts[index], consumed)

            return one

        done: dict[int, np.ndarray] = {}
        sent = 0
        sources = [source(index) for index in range(len(prompts))]
        async with aclosing(merge(sources, len(sources))) as events:
            async for index, row in events:
                done[index] = row
                while block := _block(done, sent, len(prompts)):
                    yield sent, np.stack(block)
                    sent += len(block)


def _block(done: dict[int, np.ndarray], start: int, total: int) -> list[np.ndarray]:
    """The next whole block, taken out of `done`; empty while it is incomplete."""
    end = min(start + BLOCK_ROWS, total)
    if not all(index in done for index in range(start, end)):
        return []
    return [done.pop(index) for index in range(start, end)]


class _Batches:
    """Applies a function of [rows, width] to single rows: in a thread, and to all that have come
    while it was busy at once. A product with a matrix costs the same for one row and for many."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self._function = function
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def apply(self, row: np.ndarray) -> np.ndarray:
        result: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, result))
        if self._worker is None:
            # On behalf of nobody: it works for all callers, not for the one who started it.
            self._worker = asyncio.create_task(self._work(), context=Context())
        return await result

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._apply_all(batch)
        finally:
            self._worker = None

    async def _apply_all(self, batch: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]) -> None:
        try:
            rows = await off_loop(self._function, np.stack([row for row, _ in batch]))
        except Exception as error:
            for _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for (_, result), row in zip(batch, rows, strict=True):
            if not result.done():  # Cancelled with its call.
                result.set_result(row)
