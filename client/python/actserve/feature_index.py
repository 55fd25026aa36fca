"""An index of features on disk: which prompts of a corpus activate a feature most, and where.

A folder with `index.json`, which says of what it is, and two files for every some hundred prompts:
`00000.json` has their tokens, and `00000.npz` their active features, those of one feature beside
each other. A pair of files is there or not, so building goes on where it was stopped. Nothing in it
is ever unpickled.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve.errors import InvalidRequest
from actserve.tensors import Float32Array

_KIND = "actserve features"
_FORMAT = 1
_INDEX = "index.json"
_PROMPTS_PER_SHARD = 256
_VALUES_PER_SHARD = 2_000_000
"""Active features of tokens after which a shard is written in any case: 24 MB."""
_DIGEST_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class IndexedDictionary:
    """What an index is of."""

    dictionary: str
    """The whole name of the dictionary."""
    create_time: str
    """When it was stored: another one may have the name today."""
    site: str
    features: int
    skip_first: bool
    """Whether position 0 of each prompt is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureExample:
    """A prompt that activates a feature."""

    feature: int
    key: str
    """The key of the prompt, or its number where it has none."""
    tokens: tuple[str, ...]
    """Every token of the prompt, decoded alone."""
    values: Float32Array
    """The feature at each token; zero where it is not active. Shape [tokens]."""

    @property
    def position(self) -> int:
        """Where it is largest."""
        return int(self.values.argmax())

    @property
    def value(self) -> float:
        """The largest that it is."""
        return float(self.values.max())

    def __repr__(self) -> str:
        at = self.position
        around = "".join(self.tokens[max(0, at - 8) : at])
        after = "".join(self.tokens[at + 1 : at + 4])
        return f"FeatureExample({self.value:.4g} at {around!r} [{self.tokens[at]!r}] {after!r})"


class FeatureIndex:
    """An index that was built. Raises `InvalidRequest` for a folder that has none.

    index = actserve.FeatureIndex("features-of-my-corpus")
    index.top_examples(123, k=20)
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        """Where it is."""
        try:
            told = json.loads((self.folder / _INDEX).read_text("utf-8"))
            if (told.pop("kind"), told.pop("format")) != (_KIND, _FORMAT):
                raise ValueError
            self.of = IndexedDictionary(**told)
            """What it is of."""
        except FileNotFoundError:
            raise InvalidRequest(
                f"{self.folder} holds no index of features; build one by "
                "client.features.index(prompts, dictionary, folder)",
                reason="FIELD_INVALID",
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidRequest(
                f"{self.folder / _INDEX} is not that of an index of features, or of a newer client",
                reason="FIELD_INVALID",
            ) from None
        self._shards = [_Shard(self.folder, number) for number in _numbers(self.folder)]

    @property
    def prompts(self) -> int:
        """How many prompts it has."""
        return sum(len(shard.prompts) for shard in self._shards)

    @property
    def tokens(self) -> int:
        """How many tokens, without those that were left out."""
        left_out = self.prompts if self.of.skip_first else 0
        return sum(shard.tokens for shard in self._shards) - left_out

    def top_examples(self, feature: int, k: int = 10) -> list[FeatureExample]:
        """The prompts in which a feature is largest, each once, largest first; of equal ones the
        earlier. Prompts in which it is not active are left out."""
        best: list[tuple[float, int, int]] = []
        for number, shard in enumerate(self._shards):
            best += [(-peak, number, prompt) for prompt, peak in shard.peaks(feature)]
            best = sorted(best)[:k]
        return [self._shards[number].example(feature, prompt) for _, number, prompt in best]

    def examples_between(
        self, feature: int, low: float, high: float, k: int
    ) -> list[FeatureExample]:
        """Up to `k` prompts in which a feature is at most in [low, high), the first in the order of
        the corpus: what a feature of middling size looks like."""
        found: list[FeatureExample] = []
        for shard in self._shards:
            if len(found) == k:
                break
            inside = [at for at, peak in shard.peaks(feature) if low <= peak < high]
            found += [shard.example(feature, at) for at in inside[: k - len(found)]]
        return found

    def values(self, feature: int) -> Float32Array:
        """All that a feature is where it is active, in no order. Shape [active tokens]."""
        parts = [shard.of_feature(feature)[1] for shard in self._shards]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def counts(self) -> NDArray[np.int64]:
        """At how many tokens each feature is active. Shape [features]."""
        counted = np.zeros(self.of.features, np.int64)
        for shard in self._shards:
            counted += np.bincount(shard.features, minlength=self.of.features)
        return counted

    def maxima(self) -> Float32Array:
        """The largest that each feature is; zero where it is never active. Shape [features]."""
        found = np.zeros(self.of.features, np.float32)
        for shard in self._shards:
            np.maximum.at(found, shard.features, shard.values)
        return found

    def __repr__(self) -> str:
        return f"FeatureIndex({str(self.folder)!r}, {self.of.dictionary}, {self.prompts} prompts)"


class _Shard:
    """Some prompts. What is read of it is not kept: an index may be larger than memory."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        told = json.loads(_json(folder, number).read_text("utf-8"))
        self.prompts: Sequence[Mapping[str, Any]] = [
            {"key": each["key"], "digest": each["digest"], "count": len(each["tokens"])}
            for each in told
        ]
        self._starts = np.cumsum([0, *(each["count"] for each in self.prompts)])

    @property
    def tokens(self) -> int:
        return int(self._starts[-1])

    @property
    def features(self) -> NDArray[np.int64]:
        """The feature of each value, ascending."""
        return self._array("features").astype(np.int64)

    @property
    def values(self) -> Float32Array:
        return self._array("values")

    def of_feature(self, feature: int) -> tuple[NDArray[np.int64], Float32Array]:
        """Where a feature is active, among all tokens of the shard, ascending, and what it is."""
        features = self._array("features")
        low, high = np.searchsorted(features, [feature, feature + 1])
        return self._array("tokens")[low:high].astype(np.int64), self._array("values")[low:high]

    def peaks(self, feature: int) -> list[tuple[int, float]]:
        """The largest that a feature is in each prompt in which it is active."""
        at, values = self.of_feature(feature)
        if not len(at):
            return []
        prompts = np.searchsorted(self._starts, at, side="right") - 1
        there, which = np.unique(prompts, return_inverse=True)
        largest = np.zeros(len(there), np.float32)
        np.maximum.at(largest, which, values)
        return [*zip(there.tolist(), largest.tolist(), strict=True)]

    def example(self, feature: int, prompt: int) -> FeatureExample:
        told = json.loads(_json(self._folder, self._number).read_text("utf-8"))[prompt]
        start = self._starts[prompt]
        at, values = self.of_feature(feature)
        inside = (at >= start) & (at < self._starts[prompt + 1])
        row = np.zeros(len(told["tokens"]), np.float32)
        row[at[inside] - start] = values[inside]
        return FeatureExample(feature, told["key"], tuple(told["tokens"]), row)

    def _array(self, name: str) -> NDArray[Any]:
        with np.load(_npz(self._folder, self._number), allow_pickle=False) as arrays:
            return arrays[name]


class IndexBuilder:
    """Adds prompts to an index, which it makes if there is none.

    Raises `InvalidRequest` for a folder with an index of something else.
    """

    def __init__(self, folder: str | PathLike[str], of: IndexedDictionary) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / _INDEX).exists():
            there = FeatureIndex(self.folder).of
            if there != of:
                raise InvalidRequest(
                    f"{self.folder} holds an index of {there.dictionary} as stored at "
                    f"{there.create_time}, with skip_first={there.skip_first}, and not of "
                    f"{of.dictionary} of {of.create_time}, with skip_first={of.skip_first}; name "
                    "another folder",
                    reason="FIELD_INVALID",
                    path=("folder",),
                )
        elif any(self.folder.iterdir()):
            raise InvalidRequest(
                f"{self.folder} holds something else; name a folder that is empty or not there",
                reason="FIELD_INVALID",
                path=("folder",),
            )
        else:
            told = json.dumps({"kind": _KIND, "format": _FORMAT, **asdict(of)}, indent=2)
            _written(self.folder / _INDEX, told.encode())
        self._of = of
        self._next = len(_numbers(self.folder))
        self._prompts: list[dict[str, Any]] = []
        self._parts: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._count = self._tokens = 0

    def known(self) -> Iterator[str]:
        """The digests of the prompts that it has, in their order."""
        for number in _numbers(self.folder):
            yield from (each["digest"] for each in _Shard(self.folder, number).prompts)

    def add(
        self,
        key: str,
        digest: str,
        tokens: Sequence[str],
        positions: NDArray[np.int64],
        indices: NDArray[np.int64],
        values: Float32Array,
    ) -> None:
        """Adds a prompt with its whole sparse rows, [positions, sent] each."""
        active = values > 0
        if self._of.skip_first:
            active &= (positions > 0)[:, None]
        at, _ = np.nonzero(active)
        self._parts.append((indices[active], self._tokens + positions[at], values[active]))
        self._prompts.append({"key": key, "digest": digest, "tokens": list(tokens)})
        self._tokens += len(tokens)
        self._count += len(at)
        if len(self._prompts) == _PROMPTS_PER_SHARD or self._count >= _VALUES_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        """Writes down what was added."""
        if not self._prompts:
            return
        features, tokens, values = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        order = np.lexsort((tokens, features))
        _written(
            _json(self.folder, self._next),
            json.dumps(self._prompts, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        )
        partial = self.folder / ".partial.npz"  # What numpy writes ends so in any case.
        np.savez(
            partial,
            features=features[order].astype(np.uint32),
            tokens=tokens[order].astype(np.uint32),
            values=values[order].astype(np.float32),
        )
        os.replace(partial, _npz(self.folder, self._next))
        self._next += 1
        self._prompts, self._parts, self._count, self._tokens = [], [], 0, 0


def digest_of(prompt: Any) -> str:
    """Tells one prompt from another, in any form that a client takes."""
    from actserve.prompts import prompt_to_proto

    written = prompt_to_proto(prompt).SerializeToString(deterministic=True)
    return hashlib.sha256(written).hexdigest()[:_DIGEST_CHARACTERS]


def _numbers(folder: Path) -> list[int]:
    """The shards that are whole; of one that is missing nothing after it counts."""
    count = 0
    while _npz(folder, count).exists() and _json(folder, count).exists():
        count += 1
    return [*range(count)]


def _json(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.json"


def _npz(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.npz"


def _written(path: Path, content: bytes) -> None:
    """Writes a file that is there wholly or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)
