"""What the rest of the server may ask of an engine."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, Spellings, TokenizedPrompt
from actserve_server.domain.runs import Run, RunEvent


class Engine(Protocol):
    """Three primitives: capture, intervene, generate; always on behalf of one run."""

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

    async def check_health(self) -> None:
        """Raises `ActserveError` (ENGINE_DEAD) once the engine can no longer run anything."""
        ...

    async def close(self) -> None:
        """Aborts what runs and frees processes and shared memory."""
        ...
