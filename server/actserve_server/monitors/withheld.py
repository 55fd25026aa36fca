"""What a watched sample has given and may not be told yet; and after it was run again, only what is
new of it.

Tokens are told below a position, and rows as far as a run that had ended there would have them:
below its last token.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from actserve_server.domain.runs import Rows, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    tokens: Tokens
    text_end: int
    """Of the run's text, with what they add."""


class Withheld:
    """Of one sample, whose prompt has so many tokens."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self.told = prompt_tokens
        """The position from which on no token was told."""
        self._told_text = 0
        """Characters."""
        self._told_rows: dict[tuple[int, int], int] = {}
        """By capture and site, the position from which on no row was told."""
        self._tokens: list[_Held] = []
        self._rows: list[Rows] = []
        self._new_rows: list[Rows] = []
        """Which nobody has looked at."""
        self._rows_looked_at = 0
        """The position before which the others were told."""
        self._text = ""
        """Of this run, so far."""

    def add(self, event: Tokens | Rows) -> None:
        if isinstance(event, Rows):
            self._new_rows.append(event)
            return
        self._text += event.text
        self._tokens.append(_Held(event, len(self._text)))

    def go_back(self) -> None:
        """All comes again, in another run."""
        self._tokens, self._rows, self._new_rows, self._text = [], [], [], ""

    def release(self, end: int) -> Iterator[Tokens | Rows]:
        """What may be told below a position. Tokens that came together are told together."""
        while self._tokens and _end(self._tokens[0].tokens) <= end:
            held = self._tokens.pop(0)
            yield from self._tell(held.tokens, self._text[: held.text_end])
        yield from self._release_rows(self._rows_end(self.told))

    def release_all(self, last: int) -> Iterator[Tokens | Rows]:
        """The rest, of a run that is over: rows below its last position."""
        yield from self.release(_end(self._tokens[-1].tokens) if self._tokens else self.told)
        yield from self._release_rows(last)

    def cut(self, end: int, text: str) -> Iterator[Tokens | Rows]:
        """The rest of a sample that is ended before a position, of which `text` is the whole text,
        of which nothing is held back."""
        yield from self.release(end)
        if self._tokens and (keep := end - self._tokens[0].tokens.position) > 0:
            tokens = self._tokens[0].tokens
            kept = replace(
                tokens,
                ids=tokens.ids[:keep],
                texts=tokens.texts[:keep],
                logprobs=tokens.logprobs[:keep],
            )
            yield from self._tell(kept, text)
        if len(text) > self._told_text:
            yield from self._tell(Tokens(self.told, (), (), ""), text)
        yield from self._release_rows(self._rows_end(end))

    def rows_told(self, capture: int, sites: int) -> int:
        """The position from which on rows of a capture were not told, at one of its sites."""
        return min(self._told_rows.get((capture, site), 0) for site in range(sites))

    def _tell(self, tokens: Tokens, text: str) -> Iterator[Tokens]:
        """What is new of tokens, after which the sample's text is `text`."""
        known = max(0, min(self.told - tokens.position, len(tokens.ids)))
        added = text[self._told_text :]
        self.told = max(self.told, _end(tokens))
        self._told_text += len(added)
        if known < len(tokens.ids) or added:
            yield Tokens(
                position=tokens.position + known,
                ids=tokens.ids[known:],
                texts=tokens.texts[known:],
                text=added,
                logprobs=tokens.logprobs[known:],
            )

    def _rows_end(self, end: int) -> int:
        """Before which rows are told once tokens are, below a position."""
        return end - 1 if end > self._prompt_tokens else 0

    def _release_rows(self, end: int) -> Iterator[Rows]:
        # Those that wait may be thousands, and more come all the time while a prompt is computed.
        if end == self._rows_looked_at:
            rows_there, left = self._new_rows, self._rows
        else:
            rows_there, left = [*self._rows, *self._new_rows], []
        self._rows_looked_at, self._new_rows = end, []
        for rows in rows_there:
            key = rows.capture_index, rows.site_index
            start = self._told_rows.get(key, 0)
            low, high = np.searchsorted(rows.positions, (start, end)).tolist()
            if low < high:
                self._told_rows[key] = int(rows.positions[high - 1]) + 1
                yield _part(rows, slice(low, high))
            if high < len(rows.positions):
                left.append(_part(rows, slice(high, None)))
        self._rows = left


def _part(rows: Rows, part: slice) -> Rows:
    return replace(rows, positions=rows.positions[part], bits=rows.bits[part])


def _end(tokens: Tokens) -> int:
    return tokens.position + len(tokens.ids)
