"""Texts to token ids and the characters that each token stands for.

The tokenizer's own offsets tell, once four habits of tokenizers are dealt with: trimmed spaces,
composed characters, a blank in front that nobody wrote, and bytes that are lost.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode

Span = tuple[int, int]
"""[start, end) of a text, in Unicode code points."""

BLANK = "▁"
"""What SentencePiece vocabularies write for a space."""


class OffsetEncoder:
    """Wraps a Hugging Face tokenizer. Where that tells no offsets, as those written in Python,
    every text is encoded without spans."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.has_offsets = _has_offsets(tokenizer)
        self._lost = b""
        self._blank: int | None = None
        if self.has_offsets:
            backend, vocabulary = tokenizer.backend_tokenizer, tokenizer.get_vocab()
            _keep_spaces(backend.post_processor)
            self._blank = vocabulary.get(BLANK)
            if isinstance(backend.decoder, decoders.ByteLevel):
                self._lost = _lost_bytes(vocabulary)

    def encode(
        self, text: str, *, add_special_tokens: bool
    ) -> tuple[tuple[int, ...], list[Span | None]]:
        """The ids, and for each the characters it stands for, starts ascending; None for a token
        that the tokenizer adds itself. No spans at all if they are not known."""
        data = text.encode()
        if not self.has_offsets or data != data.translate(None, self._lost):
            return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens)), []
        encoding = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True
        )
        ids = tuple(encoding["input_ids"])
        spans = [
            None if sequence is None or self._is_added(token, text[start:end]) else (start, end)
            for token, (start, end), sequence in zip(
                ids, encoding["offset_mapping"], encoding.sequence_ids(), strict=True
            )
        ]
        return ids, _close_gaps(spans, len(text))

    def _is_added(self, token: int, characters: str) -> bool:
        # Some vocabularies put a blank before a text, with the offset of the first character.
        return token == self._blank and characters not in {" ", BLANK}


def _has_offsets(tokenizer: Any) -> bool:
    try:
        tokenizer("a", return_offsets_mapping=True)
    except Exception:
        # Each kind refuses in its own way; vLLM's for Mistral even says that it `is_fast`.
        return False
    return isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer)


def _keep_spaces(post_processor: Any) -> None:
    """Has the offsets of byte-level tokens include their own spaces. Ids stay as they are."""
    if isinstance(post_processor, processors.Sequence):
        for each in post_processor:
            _keep_spaces(each)
    elif hasattr(post_processor, "trim_offsets"):
        post_processor.trim_offsets = False


def _lost_bytes(vocabulary: Iterable[str]) -> bytes:
    """The bytes that a byte-level vocabulary lacks, such as a rare control character. They leave no
    token behind, and the offsets of what follows are off by as much."""
    return bytes(byte for byte, symbol in bytes_to_unicode().items() if symbol not in vocabulary)


def _close_gaps(spans: Sequence[Span | None], length: int) -> list[Span | None]:
    """Spans that reach to the next token: where a normalizer composes characters (e and an accent),
    an offset names the first of them alone."""
    closed: list[Span | None] = []
    next_start, last_end, reached = length, -1, -1
    for span in reversed(spans):
        if span:
            start, end = span
            # Tokens that share their last character reach equally far.
            reached = reached if end == last_end else max(end, next_start)
            next_start, last_end = start, end
            span = (start, reached)
        closed.append(span)
    return closed[::-1]
