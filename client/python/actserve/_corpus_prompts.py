"""Prompts of a corpus that is explained: those that are still to be asked for, with what tells one
from another."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from actserve._fetch_jobs import with_keys
from actserve.errors import ActserveError, InvalidRequest
from actserve.explained_corpora import CorpusWriter
from actserve.explanations import ExplainedText
from actserve.feature_index import digest_of


class CorpusPrompts:
    """Is read some calls ahead of the results, so nothing of it may wait for one."""

    def __init__(self, prompts: Any, keys: Iterable[str] | None, writer: CorpusWriter) -> None:
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise InvalidRequest(
                "prompts is one prompt; give an iterable of prompts, such as a list or a generator",
                reason="FIELD_INVALID",
                path=("prompts",),
            )
        self.total = len(prompts) if isinstance(prompts, list | tuple) else None
        self._source = with_keys(prompts, keys)
        self._writer = writer
        self._asked: deque[tuple[int, str, str]] = deque()
        self.done = 0
        """Prompts that are explained or have failed, those of before among them."""

    def wanted(self) -> Iterator[tuple[int, Any]]:
        """Those that are not explained yet, with their numbers."""
        for number, key, prompt in self._source:
            try:
                digest = digest_of(prompt)
            except ActserveError:  # Which its call will say in its place.
                digest = ""
            if self._writer.has(number, digest):
                self.done += 1
                continue
            self._asked.append((number, key, digest))
            yield number, prompt

    def take(self, explained: ExplainedText | ActserveError) -> None:
        """Stores the result of the next prompt that was wanted."""
        number, key, digest = self._asked.popleft()
        if isinstance(explained, ActserveError):
            self._writer.fail(number, key, explained)
        else:
            self._writer.add(number, key, digest, explained)
        self.done += 1
