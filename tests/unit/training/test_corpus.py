"""Any folder of text becomes documents, apart and of readable text."""

import zipfile
from pathlib import Path

import pytest

from tests.integration.families import make_tokenizer
from training import corpus

LONG = "A sentence of some length. " * 30


def test_documents_come_from_folders_files_and_zip_files(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.txt").write_text("Folder. " + LONG)
    (tmp_path / "one.txt").write_text("File. " + LONG)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("many/b", "Archive. " + LONG)
    found = corpus.read([tmp_path / "folder", tmp_path / "one.txt", tmp_path / "many.zip"])
    assert [document.text.split(".")[0] for document in found] == ["Folder", "File", "Archive"]


def test_a_text_that_is_there_twice_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "brown").mkdir()
    with zipfile.ZipFile(tmp_path / "brown.zip", "w") as archive:
        for name in ("a", "b"):
            (tmp_path / "brown" / name).write_text(f"{name} {LONG}")
            archive.writestr(f"brown/{name}", f"{name} {LONG}")
    assert len(corpus.read([tmp_path, tmp_path / "brown"])) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README", LONG.encode()),
        ("picture.png", b"\x89PNG\0" + LONG.encode()),
        ("short.txt", b"Too short."),
    ],
    ids=["about the collection", "not text", "short"],
)
def test_what_is_no_document_is_left_out(tmp_path: Path, name: str, content: bytes) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"{number} {LONG}")
    (tmp_path / name).write_bytes(content)
    assert len(corpus.read([tmp_path])) == 2


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("The/at Jury/nn-tl said/vbd ``/`` no/at ''/'' ,/, and/cc left/vbd ./.", None),
        ("a  b\t c\r\n\r\n\r\nd", "a b c\n\nd"),
        ("either/or stays, as do most words", "either/or stays, as do most words"),
    ],
    ids=["parts of speech", "spaces", "a slash"],
)
def test_text_is_plain(tmp_path: Path, written: str, read: str | None) -> None:
    expected = read or 'The Jury said "no", and left.'
    for number in range(2):
        (tmp_path / f"{number}.txt").write_bytes(f"{written} ".encode() * (80 + number))
    assert corpus.read([tmp_path])[0].text.startswith(expected)


def test_bytes_that_are_not_utf8_are_read_as_western_text(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_bytes("café ".encode("cp1252") * (120 + number))
    assert corpus.read([tmp_path])[0].text.startswith("café café")


def test_long_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraph = "A line of an article. " * 20
    (tmp_path / "all.txt").write_text("\n\n".join(f"{n} {paragraph}" for n in range(200)))
    documents = corpus.read([tmp_path])
    assert len(documents) > 2
    assert {document.text[-8:].strip() for document in documents} == {"article."}
    assert max(len(document.text) for document in documents) < corpus.DOCUMENT_CHARACTERS + 2 * len(
        paragraph
    )


def test_one_document_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LONG)
    with pytest.raises(ValueError, match=r"1 documents of 500 .*give more text"):
        corpus.read([tmp_path])


@pytest.mark.parametrize(("share", "held_out"), [(0.25, 5), (0.01, 1)])
def test_held_out_documents_are_trained_on_by_nobody(share: float, held_out: int) -> None:
    documents = [corpus.Document(f"document {number}", whole=True) for number in range(20)]
    parts = corpus.split(documents, share, seed=3)
    assert len(parts.held_out) == held_out
    assert sorted([*parts.training, *parts.held_out]) == sorted(each.text for each in documents)
    assert corpus.split(documents, share, seed=3) == parts != corpus.split(documents, share, seed=4)


def test_a_piece_of_a_file_is_not_held_out(tmp_path: Path) -> None:
    paragraph = "A line of an article. " * 20
    (tmp_path / "all.txt").write_text("\n\n".join(f"{n} {paragraph}" for n in range(200)))
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"whole {number} {LONG}")
    documents = corpus.read([tmp_path])
    parts = corpus.split(documents, 0.5, seed=0)
    assert parts.held_out
    assert all(text.startswith("whole") for text in parts.held_out)
    assert len(parts.training) == len(documents) - round(len(documents) / 2)
    pieces = [document for document in documents if not document.whole]
    with pytest.raises(ValueError, match="is a whole file; give more files"):
        corpus.split(pieces, 0.5, seed=0)


def test_chunks_are_the_tokens_of_one_document_each() -> None:
    tokenizer = make_tokenizer()
    documents = [LONG, "Another. " * 50]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in documents]
    expected = [each[at : at + 16] for each in ids for at in range(0, len(each) - 15, 16)]
    assert corpus.chunks(documents, tokenizer, 16) == expected
