"""Explained corpora on disk: what a model thinks at the tokens of many prompts, in Parquet files.

A folder with `corpus.json`, which says what was asked, and in `explanations` a Parquet file for
every some hundred prompts, a row for each explanation. What was explained since the last of them is
in `unpacked.jsonl`, a line for each prompt, so that a cut costs the prompts that were under way and
no other. Nothing in it is ever unpickled.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actserve._extras import needed
from actserve.errors import ActserveError, InvalidRequest
from actserve.explanations import ExplainedText, Explanation, Score

if TYPE_CHECKING:
    import pandas as pd

_KIND = "actserve explanations"
_FORMAT = 1
_ABOUT = "corpus.json"
_PACKED = "explanations"
_UNPACKED = "unpacked.jsonl"
_FAILED = "failed.json"
_WHAT = "explained corpora"
_PROMPTS_PER_FILE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedCorpus:
    """What was asked of each prompt."""

    model: str
    """The whole name of the model."""
    nla: str
    """The id of the NLA."""
    site: str
    """The canonical name of the site."""
    asked: str
    """A digest of everything else that the words depend on: positions, interventions, sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPrompt:
    """A prompt that could not be explained."""

    prompt: int
    """Its number in the corpus."""
    key: str
    reason: str
    message: str


class ExplainedCorpus:
    """An explained corpus, or what there is of one. Raises `InvalidRequest` for a folder that has
    none.

    corpus = actserve.ExplainedCorpus("explained")
    corpus.to_pandas()
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        """Where it is. `folder / "explanations"` is what other programs read."""
        try:
            told = json.loads((self.folder / _ABOUT).read_text("utf-8"))
            if (told.pop("kind"), told.pop("format")) != (_KIND, _FORMAT):
                raise ValueError
            self.of = AskedCorpus(**told)
            """What was asked."""
        except FileNotFoundError:
            raise InvalidRequest(
                f"{self.folder} holds no explained corpus; make one by "
                "client.explain_corpus(prompts, folder)",
                reason="FIELD_INVALID",
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidRequest(
                f"{self.folder / _ABOUT} is not that of an explained corpus, or of a newer client",
                reason="FIELD_INVALID",
            ) from None

    @property
    def prompts(self) -> int:
        """How many prompts are explained."""
        return sum(1 for _ in self.digests())

    @property
    def failed(self) -> tuple[FailedPrompt, ...]:
        """The prompts that could not be explained; the next call tries them again."""
        path = self.folder / _FAILED
        told = json.loads(path.read_text("utf-8")) if path.exists() else []
        return tuple(FailedPrompt(**each) for each in told)

    def to_pandas(self) -> "pd.DataFrame":
        """All explanations, by prompt, position and sample: a row for each. Needs the extras
        `files` and `pandas`.

        Columns: `prompt` (its number in the corpus) and `key`; `position`, `token_id` and `token`;
        `sample`; then what an `Explanation` has, its score as `cosine`, `normalized_mse`,
        `variance_explained` and `centered_cosine`.
        """
        needed("pandas", "data frames")
        pa = needed("pyarrow", _WHAT)
        rows = [row for line in self._lines() for row in line["rows"]]
        tables = [*self._packed(), pa.Table.from_pylist(rows, _schema(pa))]
        frame = pa.concat_tables(tables).to_pandas()
        ordered = frame.sort_values(["prompt", "position", "sample"], ignore_index=True)
        return ordered.drop(columns="digest")

    def digests(self) -> Iterator[tuple[int, str, str]]:
        """The number, the key and the digest of each prompt that is explained."""
        columns = ["prompt", "key", "digest"]
        for table in self._packed(columns):
            seen: set[int] = set()
            for row in table.to_pylist():
                if row["prompt"] not in seen:
                    seen.add(row["prompt"])
                    yield row["prompt"], row["key"], row["digest"]
        for line in self._lines():
            yield line["prompt"], line["key"], line["digest"]

    def _packed(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        pq = needed("pyarrow.parquet", _WHAT)
        for number in range(_files(self.folder)):
            yield pq.read_table(_file(self.folder, number), columns=columns)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The prompts that are in no Parquet file yet."""
        path = self.folder / _UNPACKED
        if not path.exists():
            return
        packed = _last_packed(self.folder)
        for line in path.read_text("utf-8").splitlines():
            try:
                told = json.loads(line)
            except ValueError:  # The last one, cut while it was written.
                return
            # A file that was written just before a cut has them already.
            if told["prompt"] not in packed:
                yield told

    def __repr__(self) -> str:
        return (
            f"ExplainedCorpus({str(self.folder)!r}, {self.prompts} prompts explained by "
            f"{self.of.nla}, {len(self.failed)} failed)"
        )


class CorpusWriter:
    """Adds prompts to an explained corpus, which it makes if there is none.

    Raises `InvalidRequest` for a folder with something else, and `ImportError` without pyarrow.
    """

    def __init__(self, folder: str | PathLike[str], of: AskedCorpus) -> None:
        needed("pyarrow", _WHAT)  # Now, and not after an hour.
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _ABOUT).exists():
            _check_same(self.folder, ExplainedCorpus(self.folder).of, of)
        elif any(self.folder.iterdir()):
            raise InvalidRequest(
                f"{self.folder} holds something else; name a folder that is empty or not there",
                reason="FIELD_INVALID",
                path=("folder",),
            )
        else:
            (self.folder / _PACKED).mkdir()
            told = json.dumps({"kind": _KIND, "format": _FORMAT, **asdict(of)}, indent=2)
            _written(self.folder / _ABOUT, told.encode())
        there = ExplainedCorpus(self.folder)
        self._known = {number: digest for number, _, digest in there.digests()}
        self._lines = list(there._lines())
        self._failed: list[FailedPrompt] = []
        # What a cut has left of a line is gone.
        self._rewrite()

    @property
    def done(self) -> int:
        """How many prompts it has."""
        return len(self._known)

    def has(self, number: int, digest: str) -> bool:
        """Whether the prompt of that number is explained. Raises `InvalidRequest` where another one
        is."""
        known = self._known.get(number)
        if known not in (None, digest):
            raise InvalidRequest(
                f"prompt {number} is not the one that {self.folder} has there; give the same "
                "prompts, with new ones after them, or name another folder",
                reason="FIELD_INVALID",
                path=("prompts", number),
            )
        return known is not None

    def add(self, number: int, key: str, digest: str, explained: ExplainedText) -> None:
        """Adds a prompt; it is on the disk when this returns."""
        line = {
            "prompt": number,
            "key": key,
            "digest": digest,
            "rows": [_row(number, key, digest, explained, each) for each in explained.explanations],
        }
        with (self.folder / _UNPACKED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[number] = digest
        self._lines.append(line)
        if len(self._lines) >= _PROMPTS_PER_FILE:
            self.pack()

    def fail(self, number: int, key: str, error: ActserveError) -> None:
        """Notes a prompt that could not be explained."""
        self._failed.append(
            FailedPrompt(prompt=number, key=key, reason=error.reason, message=str(error))
        )

    def pack(self) -> None:
        """Writes a Parquet file of the prompts that are in none yet, and what has failed."""
        pa, pq = needed("pyarrow", _WHAT), needed("pyarrow.parquet", _WHAT)
        if self._lines:
            rows = [row for line in self._lines for row in line["rows"]]
            path = _file(self.folder, _files(self.folder))
            partial = path.with_name(f".partial-{path.name}")
            pq.write_table(pa.Table.from_pylist(rows, _schema(pa)), partial)
            os.replace(partial, path)
            self._lines = []
            self._rewrite()
        told = [asdict(each) for each in self._failed]
        _written(self.folder / _FAILED, json.dumps(told, indent=2).encode())

    def _rewrite(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self._lines)
        _written(self.folder / _UNPACKED, lines.encode())


def _row(
    number: int, key: str, digest: str, explained: ExplainedText, explanation: Explanation
) -> dict[str, Any]:
    position = explained.positions[explanation.row]
    score = explanation.score
    return {
        "prompt": number,
        "key": key,
        "position": position,
        "token_id": explained.token_ids[position],
        "token": explained.tokens[position],
        "sample": explanation.sample,
        "text": explanation.text,
        "flags": [*explanation.flags],
        "norm": explanation.norm,
        "finish_reason": explanation.finish_reason,
        "output_tokens": explanation.output_tokens,
        **{each.name: score and getattr(score, each.name) for each in fields(Score)},
        "claims": [asdict(claim) for claim in explanation.claims],
        "digest": digest,
    }


def _schema(pa: Any) -> Any:
    claim = pa.struct(
        {
            "text": pa.string(),
            "start": pa.int64(),
            "end": pa.int64(),
            "mse_increase": pa.float32(),
            "variance_explained_drop": pa.float32(),
            "recurrence": pa.float32(),
        }
    )
    columns: Mapping[str, Any] = {
        "prompt": pa.int64(),
        "key": pa.string(),
        "position": pa.int64(),
        "token_id": pa.int64(),
        "token": pa.string(),
        "sample": pa.int64(),
        "text": pa.string(),
        "flags": pa.list_(pa.string()),
        "norm": pa.float32(),
        "finish_reason": pa.string(),
        "output_tokens": pa.int64(),
        "cosine": pa.float32(),
        "normalized_mse": pa.float32(),
        "variance_explained": pa.float32(),
        "centered_cosine": pa.float32(),
        "claims": pa.list_(claim),
        "digest": pa.string(),
    }
    return pa.schema(columns)


def _check_same(folder: Path, there: AskedCorpus, asked: AskedCorpus) -> None:
    for field in fields(AskedCorpus):
        had, wanted = getattr(there, field.name), getattr(asked, field.name)
        if had == wanted:
            continue
        what = f"with {field.name} {had}, and not {wanted}"
        if field.name == "asked":
            what = "with other positions, interventions or ways to explain"
        raise InvalidRequest(
            f"{folder} holds a corpus that was explained {what}; ask as before, or name another "
            "folder",
            reason="FIELD_INVALID",
            path=("folder",),
        )


def _last_packed(folder: Path) -> set[int]:
    """The prompts of the last Parquet file."""
    pq = needed("pyarrow.parquet", _WHAT)
    count = _files(folder)
    if not count:
        return set()
    return {*pq.read_table(_file(folder, count - 1), columns=["prompt"])["prompt"].to_pylist()}


def _files(folder: Path) -> int:
    """How many Parquet files there are."""
    count = 0
    while _file(folder, count).exists():
        count += 1
    return count


def _file(folder: Path, number: int) -> Path:
    return folder / _PACKED / f"{number:05}.parquet"


def _written(path: Path, content: bytes) -> None:
    """Writes a file that is there wholly or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)
