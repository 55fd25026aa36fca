"""Text to train on: any folder of text files, and zip files of them.

Documents are what is held out, so that no held-out row comes from a text that was trained on. Files
that hold many texts, as collections of articles do, are cut at blank lines; where one text ends is
not known there, so pieces are only trained on.
"""

import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

DOCUMENT_CHARACTERS = 20_000
"""Where a file is longer, it is cut at the next blank line or, failing that, line end."""
MINIMUM_CHARACTERS = 500
_NOT_TEXT = {"readme", "license", "contents", "cats.txt"}
"""File names, in lower case, of what collections say about themselves."""
_TAGGED_WORD = re.compile(r"(\S+)/[A-Za-z*$'`.,:()\-+]+")


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    whole: bool
    """Whether it is a whole file."""


@dataclass(frozen=True, slots=True)
class Split:
    """Texts of documents, apart."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]


def read(paths: Sequence[Path]) -> list[Document]:
    """The documents of files, zip files and folders of these, in the order of their names, each
    once: a collection often lies beside the archive that it came in.

    Raises ValueError if there are fewer than two.
    """
    found: dict[str, Document] = {}
    for path in paths:
        for text in _texts(path):
            pieces = list(_cut(_plain(text)))
            for piece in pieces:
                if len(piece) >= MINIMUM_CHARACTERS:
                    found.setdefault(piece, Document(piece, whole=len(pieces) == 1))
    documents = list(found.values())
    if len(documents) < 2:
        raise ValueError(
            f"{', '.join(map(str, paths))}: {len(documents)} documents of {MINIMUM_CHARACTERS} "
            "characters or more, but one is trained on and another held out; give more text"
        )
    return documents


def split(documents: Sequence[Document], held_out: float, seed: int) -> Split:
    """Draws a share of the documents, at least one, at random. Those drawn are not trained on, and
    those of them that are whole files are held out.

    Raises ValueError if none of them is.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    count = max(1, round(held_out * len(order)))
    drawn, rest = ([documents[index] for index in part] for part in (order[:count], order[count:]))
    apart = tuple(document.text for document in drawn if document.whole)
    if not apart:
        raise ValueError(
            f"none of the {count} documents drawn to be held out is a whole file; give more files "
            f"of up to {DOCUMENT_CHARACTERS} characters, or raise held_out above {held_out}"
        )
    return Split(training=tuple(document.text for document in rest), held_out=apart)


def chunks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int
) -> list[list[int]]:
    """Consecutive token ids of documents, `size` at a time; what is left of a document is dropped.

    No special token is added, so a row's context is the text alone.
    """
    cut: list[list[int]] = []
    for document in documents:
        ids: list[int] = tokenizer.encode(document, add_special_tokens=False)
        cut += [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return cut


def _texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                yield from _texts(inner)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/") and Path(name).name.lower() not in _NOT_TEXT:
                    yield from _decoded(archive.read(name))
    elif path.name.lower() not in _NOT_TEXT:
        yield from _decoded(path.read_bytes())


def _decoded(content: bytes) -> Iterator[str]:
    # Files of other kinds lie beside texts, and old collections are not in UTF-8.
    if b"\0" not in content:
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError:
            yield content.decode("cp1252", errors="replace")


def _cut(text: str) -> Iterator[str]:
    while len(text) > DOCUMENT_CHARACTERS:
        ends = (text.find(gap, DOCUMENT_CHARACTERS) for gap in ("\n\n", "\n"))
        end = next((end for end in ends if 0 <= end < 2 * DOCUMENT_CHARACTERS), DOCUMENT_CHARACTERS)
        yield text[:end].strip()
        text = text[end:]
    yield text.strip()


def _plain(text: str) -> str:
    """Text with even spacing, and without the part of speech that tagged collections (Brown's)
    write after every word."""
    text = text.replace("\r\n", "\n")
    words = text[:2000].split()[:-1]
    if words and sum(_TAGGED_WORD.fullmatch(word) is not None for word in words) > 0.9 * len(words):
        text = re.sub(r"(\S+)/[^/\s]+", r"\1", text)
        text = re.sub(r" *(``|'') *", lambda quote: ' "' if quote[1] == "``" else '" ', text)
        text = re.sub(r" +([.,;:?!)])(?: \1)?", r"\1", text)
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r" ?\n ?(?:\n ?)+", "\n\n", text)
