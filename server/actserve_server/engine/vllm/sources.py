"""Where the tokens of a prompt come from, given the characters that each stands for.

For a text prompt that is all there is to know. A conversation is rendered to one text, in which
`locate` finds what each turn says.
"""

import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from actserve_server.domain.prompts import TokenSource, Turn
from actserve_server.engine.vllm.offsets import Span

NO_SOURCE = TokenSource()


@dataclass(frozen=True, slots=True)
class Piece:
    """A text that the chat template is given as one: all that turn `turn` says, or a part of it,
    from its character `first` on."""

    text: str
    turn: int
    first: int


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters [start, end) of a rendered conversation, which are those of what turn `turn` says
    from its character `first` on."""

    start: int
    end: int
    turn: int
    first: int


def text_sources(spans: Iterable[Span | None]) -> tuple[TokenSource, ...]:
    """The sources of the tokens of a text prompt."""
    return tuple(TokenSource(*span) if span else NO_SOURCE for span in spans)


def conversation_sources(
    spans: Iterable[Span | None], passages: Iterable[Passage], turns: Sequence[Turn]
) -> tuple[TokenSource, ...]:
    """The sources of the tokens of a rendered conversation. A token on the border of a passage
    belongs to it, with the characters that lie inside."""
    return tuple(_conversation_sources(spans, passages, turns))


def _conversation_sources(
    spans: Iterable[Span | None], passages: Iterable[Passage], turns: Sequence[Turn]
) -> Iterator[TokenSource]:
    ahead = deque(passage for passage in passages if passage.start < passage.end)
    for span in spans:
        while span and ahead and ahead[0].end <= span[0]:
            ahead.popleft()
        held = _held(ahead, span[1]) if span else []
        if not (span and held):
            yield NO_SOURCE
            continue
        head, tail = held[0], held[-1]
        yield TokenSource(
            max(span[0], head.start) + head.first - head.start,
            min(span[1], tail.end) + tail.first - tail.start,
            head.turn,
            turns[head.turn].role,
        )


def _held(passages: deque[Passage], end: int) -> list[Passage]:
    """The first passages that begin before `end`, of one turn: parts of a turn may adjoin, and a
    token hold the end of one and the start of the next."""
    before = takewhile(lambda passage: passage.start < end, passages)
    return [passage for passage in before if passage.turn == passages[0].turn]


def locate(
    pieces: Sequence[Piece], rendered: str, render: Callable[[Sequence[str]], str]
) -> list[Passage]:
    """Where the pieces of what turns say lie in the rendered conversation, in the order of the
    text.

    `render` renders the same turns with other texts. Searching for a text could find it in the
    template's own words ("user") or in another turn. So each piece is rendered once more between
    two marks that no caller can know: the text outside of the marks is the template's, and has to
    come back in `rendered` word for word, in order and to the end, with only the pieces between,
    whole or stripped. Where it does not, since the template decides by what a turn says, nothing is
    located; a piece that its marks do not enclose is rewritten, and left out.
    """
    nonce = secrets.token_hex(8)

    def marked(index: int, text: str) -> str:
        # An empty text has nothing to find, and may have a meaning for the template.
        return f"{nonce}o{index}x{text}{nonce}c{index}x" if text else text

    mark = re.compile(f"{nonce}([oc])([0-9]+)x")
    text = render([marked(index, piece.text) for index, piece in enumerate(pieces)])
    plain = mark.sub("", text)

    edges: list[tuple[bool, int, int]] = []
    removed = 0
    for match in mark.finditer(text):
        edges.append((match[1] == "o", int(match[2]), match.start() - removed))
        removed += len(match[0])
    times = Counter((opens, index) for opens, index, _ in edges)
    found = [
        (index, start, end)
        for (opens, index, start), (opens_again, same, end) in pairwise(edges)
        if opens
        and not opens_again
        and index == same
        and plain[start:end] == pieces[index].text
        and times[True, index] == times[False, index] == 1
    ]
    ends = [0, *(end for _, _, end in found)]
    starts = [*(start for _, start, _ in found), len(plain)]
    glue = [plain[end:start] for end, start in zip(ends, starts, strict=True)]
    return _align(rendered, glue, [pieces[index] for index, _, _ in found])


def _align(rendered: str, glue: Sequence[str], pieces: Sequence[Piece]) -> list[Passage]:
    """The passages if `rendered` is glue and pieces in turn, else none."""
    if not rendered.startswith(glue[0]):
        return []
    passages: list[Passage] = []
    at = len(glue[0])
    for piece, after in zip(pieces, glue[1:], strict=True):
        for kept in _kept(piece.text):
            if rendered.startswith(kept + after, at):
                break
        else:
            return []
        first = piece.first + piece.text.index(kept)
        passages.append(Passage(at, at + len(kept), piece.turn, first))
        at += len(kept) + len(after)
    return passages if at == len(rendered) else []


def _kept(text: str) -> Iterator[str]:
    """What templates make of a text: all of it, or without blanks or newlines at its ends."""
    yield text
    for characters in (None, "\n"):
        yield text.strip(characters)
        yield text.lstrip(characters)
        yield text.rstrip(characters)
