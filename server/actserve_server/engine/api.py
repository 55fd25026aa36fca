"""What the rest of the server may ask of an engine."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix

REPLAYED_GRAPH = "replayed"
"""What an engine calls the graph that computes steps which generate and are replayed as a whole."""


class Engine(Protocol):
    """Three primitives: capture, intervene, generate; always on behalf of one run. And what the
    model's weights are, as far as `ModelInfo.weights` says that they are served."""

    @property
    def info(self) -> ModelInfo:
        """The one model this engine serves."""
        ...

    async def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """The prompt as the model sees it. Raises `ActserveError` if it cannot be rendered or
        holds a token id beyond the vocabulary."""
        ...

    async def spell(self, words: Sequence[str]) -> tuple[Spellings, ...]:
        """How the tokenizer writes each word, less the spaces before it: at the start of a text
        and after one space."""
        ...

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        """Streams tokens and rows, then exactly one `Finished`.

        Rows of one site come in ascending order of position, none twice, none missing: a run
        whose rows cannot all be delivered raises `ActserveError` instead of finishing. Closing
        the generator early aborts the run and frees all it holds.
        """
        ...

    def ended_text(self, run: Run, generated: Sequence[int]) -> str:
        """The whole text of a run that is ended after these tokens, which have not ended it
        themselves: nothing of it is held back."""
        ...

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        """Rows of a matrix, [token ids, width] in the model's element type, stored as
        `ElementType.storage`."""
        ...

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        """Consecutive rows of a matrix of a query head, [rows, columns] in the model's element
        type, stored as `ElementType.storage`. Keys and values are those of the head's group."""
        ...

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        """How targets are made of the stream, and of the heads of these layers."""
        ...

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        """The graphs that reach fewer hook points than `info` serves, by name, with those that they
        reach: what the model is computed by in steps that use no others. And REPLAYED_GRAPH, if it
        has one."""
        ...

    async def drop_graph(self, name: str) -> None:
        """Never computes by it again."""
        ...

    async def check_health(self) -> None:
        """Raises `ActserveError` (ENGINE_DEAD) once the engine can no longer run anything."""
        ...

    async def close(self) -> None:
        """Aborts what runs and frees processes and shared memory, within about
        `closing.CLOSE_S`. The event loop goes on meanwhile."""
        ...
