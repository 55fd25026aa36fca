"""The sentences of an explanation, and what of them neighbouring explanations say too.

What an NLA makes up differs from token to token while what it reads recurs, and a sentence that
matters is missed when it is left out (Fraser-Taliente et al., 2026). Sentences are found by rules
and words are compared as they are written: a model that did better could not be checked by hand.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set

_LINE = re.compile(r"[^\n\r\u2028\u2029]+")
_GAP = re.compile(r"[\W_]+")
"""What is between two words."""
_END = re.compile(
    r"""
    [.!?…।؟]+ ["'”’»)\]]* (?=\s)  # Not in 3.5 or example.com.
    | [。！？]+ ["'”’」』）]*        # No space follows these.
    """,
    re.VERBOSE,
)
_PASSAGE = re.compile(
    r'"[^"\n\r]*" | “[^“”\n\r]*” | «[^«»\n\r]*» | 「[^「」\n\r]*」 | \([^()\n\r]*\)', re.VERBOSE
)
"""A quotation or parenthesis that begins and ends in one line."""
_NUMERAL = re.compile(r"\W{0,4}\d{1,3}\.")
"""What numbers the items of a list."""
_ABBREVIATION = re.compile(
    r"""\b(?: [^\W\d_]   # An initial, and the last letter of U.S.
            | mr | mrs | ms | dr | prof | st | mt | sgt | capt | lt | rev | gov | sen | rep
            | vs | cf | no | nos | fig | figs | vol | pp | al | approx | ca
          )\.$""",
    re.VERBOSE | re.IGNORECASE,
)
"""What ends with a period and rarely a sentence. Those that stand before a small letter are not
needed, since it begins none. In doubt two sentences stay one: half a sentence says nothing."""
_ABBREVIATION_LETTERS = 6
"""Of the longest."""

_MARKS = "".join(
    chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M")
)
_WORD = re.compile(rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*")
"""Letters and digits with the combining marks among them, which are vowels in many scripts."""

MIN_LETTERS = 3
"""Of a word of a script with capitals; shorter ones are nearly all function words."""

_FUNCTION_WORDS = frozenset(
    _WORD.findall("""
    about above after again all also and any are aren because been before being below between both
    but can could couldn did didn does doesn doing don down during each either few for from further
    had hadn has hasn have haven having her here hers him his how into isn its itself just may might
    more most must neither nor not now off once only onto other our ours out over own per same shall
    she should shouldn some such than that the their theirs them then there these they this those
    through too under until upon very was wasn were weren what when where whether which while who
    whom whose why will with within without would wouldn yet you your yours
    """)
)


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of a text, and its lines where they end without one: characters [start, end).

    In order, without space around them. Every character but space is in exactly one; a quotation
    or parenthesis within a line is never cut.
    """
    uncut = {
        index
        for passage in _PASSAGE.finditer(text)
        for index in range(passage.start() + 1, passage.end())
    }
    spans: list[tuple[int, int]] = []
    for line in _LINE.finditer(text):
        start = line.start()
        for gap in _GAP.finditer(text, line.start(), line.end()):
            if line.start() < gap.start() and gap.end() < line.end():
                end = _end(text, start, gap, uncut)
                spans.append(_trimmed(text, start, end))
                start = end
        spans.append(_trimmed(text, start, line.end()))
    return [(start, end) for start, end in spans if start < end]


def without(text: str, span: tuple[int, int]) -> str:
    """The text with one of its `sentences` left out, and the lines of the others as they were."""
    before, after = text[: span[0]], text[span[1] :]
    kept_before, kept_after = before.rstrip(), after.lstrip()
    gaps = before[len(kept_before) :], after[: len(after) - len(kept_after)]
    return (kept_before + max(gaps, key=_lines) + kept_after).strip()


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say what it is about, casefolded.

    Numbers, and words of `MIN_LETTERS` letters that are no function words of English; words of
    scripts without capitals whatever their length, which stand for more, and in scripts without
    spaces everything between two punctuation marks.
    """
    return frozenset(word for word in _WORD.findall(text.casefold()) if _has_content(word))


class Said:
    """What several texts say: for each content word, how many of them contain it."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        words = [content_words(text) for text in texts]
        self._count = len(words)
        self._words = Counter(word for each in words for word in each)

    def add(self, other: "Said") -> None:
        self._count += other._count
        self._words.update(other._words)

    def remove(self, other: "Said") -> None:
        """Takes back what was added."""
        self._count -= other._count
        self._words.subtract(other._words)

    def share(self, words: Set[str]) -> float | None:
        """The mean over the texts of the share of the words that they contain; None without texts
        or words."""
        if not words or not self._count:
            return None
        return sum(self._words[word] for word in words) / (len(words) * self._count)


def recurrence(text: str, spans: Sequence[tuple[int, int]], neighbours: Said) -> list[float | None]:
    """For each span of a text the mean over neighbouring texts of the share of the span's content
    words that they contain, 0 to 1; None without neighbours or content words."""
    return [neighbours.share(content_words(text[start:end])) for start, end in spans]


def _end(text: str, start: int, gap: re.Match[str], uncut: Set[int]) -> int:
    """Where between two words the sentence that begins at `start` ends: `start` if it goes on."""
    ends = [
        mark.end()
        for mark in _END.finditer(text, gap.start(), gap.end())
        if mark.end() not in uncut
    ]
    if not ends or text[gap.end()].islower() or _is_no_end(text, start, gap):
        return start
    return ends[-1]


def _is_no_end(text: str, start: int, gap: re.Match[str]) -> bool:
    """Whether the period right after the word belongs to it."""
    period = gap.start() + 1
    if text[gap.start()] != "." or text[period] == ".":
        return False
    word = max(start, gap.start() - _ABBREVIATION_LETTERS)
    return bool(_NUMERAL.fullmatch(text, start, period) or _ABBREVIATION.search(text, word, period))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    kept = piece.lstrip()
    start = end - len(kept)
    return start, start + len(kept.rstrip())


def _lines(gap: str) -> tuple[int, int]:
    return len(f"{gap}.".splitlines()), len(gap)


def _has_content(word: str) -> bool:
    if not word.isalpha() or word.upper() == word:  # Such as 7b; scripts without capitals.
        return True
    return len(word) >= MIN_LETTERS and word not in _FUNCTION_WORDS
