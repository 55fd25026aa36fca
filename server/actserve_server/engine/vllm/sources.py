"""Where the tokens of a prompt come from, given the characters that each stands for.

For a text prompt that is all there is to know. A conversation is rendered to one text, in which
`locate` finds what each turn says.
"""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from actserve_server.domain.prompts import TokenSource, Turn
from actserve_server.engine.vllm.offsets import Span

NO_SOURCE = TokenSource()


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
    ahead = iter(passages)
    passage = next(ahead, None)
    for span in spans:
        while span and passage and passage.end <= span[0]:
            passage = next(ahead, None)
        if not (span and passage and max(span[0], passage.start) < min(span[1], passage.end)):
            yield NO_SOURCE
            continue
        shift = passage.first - passage.start
        yield TokenSource(
            max(span[0], passage.start) + shift,
            min(span[1], passage.end) + shift,
            passage.turn,
            turns[passage.turn].role,
        )


def locate(
    contents: Sequence[str], rendered: str, render: Callable[[Sequence[str]], str]
) -> list[Passage]:
    """Where the contents of turns lie in the rendered conversation, in the order of the text.

    `render` renders the same turns with other contents. Searching for a content could find it in
    the template's own words ("user") or in another turn. So each content is rendered once more
    between two marks that no caller can know: the text outside of the marks is the template's, and
    has to come back in `rendered` word for word, in order and to the end, with only the contents
    between, whole or stripped. Where it does not, since the template decides by what a turn says,
    nothing is located; a turn whose marks do not enclose its content is rewritten, and left out.
    """
    nonce = secrets.token_hex(8)

    def marked(turn: int, content: str) -> str:
        # An empty content has nothing to find, and may have a meaning for the template.
        return f"{nonce}o{turn}x{content}{nonce}c{turn}x" if content else content

    mark = re.compile(f"{nonce}([oc])([0-9]+)x")
    text = render([marked(turn, content) for turn, content in enumerate(contents)])
    plain = mark.sub("", text)

    edges: list[tuple[bool, int, int]] = []
    removed = 0
    for match in mark.finditer(text):
        edges.append((match[1] == "o", int(match[2]), match.start() - removed))
        removed += len(match[0])
    times = Counter((opens, turn) for opens, turn, _ in edges)
    found = [
        (turn, start, end)
        for (opens, turn, start), (opens_again, same, end) in pairwise(edges)
        if opens
        and not opens_again
        and turn == same
        and plain[start:end] == contents[turn]
        and times[True, turn] == times[False, turn] == 1
    ]
    ends = [0, *(end for _, _, end in found)]
    starts = [*(start for _, start, _ in found), len(plain)]
    glue = [plain[end:start] for end, start in zip(ends, starts, strict=True)]
    return _align(rendered, glue, [(turn, contents[turn]) for turn, _, _ in found])


def _align(
    rendered: str, glue: Sequence[str], contents: Sequence[tuple[int, str]]
) -> list[Passage]:
    """The passages if `rendered` is glue and contents in turn, else none."""
    if not rendered.startswith(glue[0]):
        return []
    passages: list[Passage] = []
    at = len(glue[0])
    for (turn, content), after in zip(contents, glue[1:], strict=True):
        for kept in _kept(content):
            if rendered.startswith(kept + after, at):
                break
        else:
            return []
        passages.append(Passage(at, at + len(kept), turn, content.index(kept)))
        at += len(kept) + len(after)
    return passages if at == len(rendered) else []


def _kept(content: str) -> Iterator[str]:
    """What templates make of a content: all of it, or without blanks or newlines at its ends."""
    yield content
    for characters in (None, "\n"):
        yield content.strip(characters)
        yield content.lstrip(characters)
        yield content.rstrip(characters)
