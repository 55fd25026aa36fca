"""What an explanation should say of a row, made without any other model.

A row knows the latest token, most of what the model expects next, and of what came before the gist
rather than the words. So an explanation names the topic in a few content words, then what is likely
next, then the latest words as they are. They come last and are left open, so that the state in
which an AR ends is that in which the model itself read the same words.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from training.models import decode

TOPIC_WORDS = 3
NEXT_TOKENS = 3
LATEST_TOKENS = 6
END = "(end)"
"""What a special token is called: written as itself it would be one, and end the explanation."""
RECENCY_WORDS = 40.0
"""A content word that many words back counts 1/e of one here."""
MINIMUM_COUNT = 30
"""Words that are rarer in the training text cannot be learned."""
COMMON_WORDS = 200
"""The most common words are function words; nothing else need be known of the language."""
_WORD = re.compile(r"[A-Za-z][a-z]{3,}")


class Vocabulary:
    """How much each content word says: the log of how rare it is in a text."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(word.lower() for text in texts for word in _WORD.findall(text))
        total = sum(counts.values())
        self._information = {
            word: math.log(total / count)
            for word, count in counts.items()
            if count >= MINIMUM_COUNT
        }
        for word, _ in counts.most_common(COMMON_WORDS):
            self._information.pop(word, None)

    def topic(self, text: str) -> list[str]:
        """The words of a text that say the most about it, repeated and late ones above all; in the
        order in which they were last seen."""
        words = [word.lower() for word in _WORD.findall(text)]
        weight: Counter[str] = Counter()
        last: dict[str, int] = {}
        for back, word in enumerate(reversed(words)):
            if word in self._information:
                weight[word] += self._information[word] * math.exp(-back / RECENCY_WORDS)  # type: ignore[assignment]
                last.setdefault(word, back)
        best = [word for word, _ in weight.most_common(TOPIC_WORDS)]
        return sorted(best, key=last.__getitem__, reverse=True)


def describe(
    ids: Sequence[int],
    next_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> str:
    """An explanation of the row at the last of `ids`, tokens since the start of its context."""
    start = max(0, len(ids) - LATEST_TOKENS)
    # From the start of a word on: the row holds its end, and its beginning makes it readable.
    while start > 0 and not _begins_word(tokenizer, ids, start):
        start -= 1
    topic = vocabulary.topic(decode(tokenizer, ids[:start]))
    special = set(tokenizer.all_special_ids)
    likely = [
        END if token in special else visible(decode(tokenizer, [token]))
        for token in next_ids[:NEXT_TOKENS]
    ]
    parts = [f"Topic: {', '.join(topic)}."] if topic else []
    parts.append(f"Next: {' / '.join(likely)}.")
    parts.append(f"Text: {visible(decode(tokenizer, ids[start:]))}")
    return " ".join(parts)


def _begins_word(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], at: int) -> bool:
    # After the token before it: decoded alone, SentencePiece drops the space that a word begins
    # with.
    before = decode(tokenizer, ids[at - 1 : at])
    return not decode(tokenizer, ids[at - 1 : at + 1])[len(before) :][:1].isalnum()


def visible(text: str) -> str:
    """As explanations quote text."""
    return text.replace("\n", "\\n").replace("\t", "\\t").strip()
