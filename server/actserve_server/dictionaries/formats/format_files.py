"""What readers of dictionaries share: configurations, tensors, and what they make of them."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    DictionaryKind,
    DictionaryMatrices,
)
from actserve_server.domain.sites import Site

MAX_CONFIG_BYTES = 1 << 20


class DictionaryFormatError(ValueError):
    """A file is not a dictionary that can be served; the message names the file, the field and what
    to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadDictionary:
    """A dictionary as its files have it, in our form."""

    kind: DictionaryKind
    site: Site | None
    """None where the files do not say."""
    written_sites: tuple[Site, ...] = ()
    activation: ActivationKind
    kept: int = 0
    matrices: DictionaryMatrices
    model: str = ""
    """The name of the model that it was trained on, as the files have it; empty if they do not."""
    unknown_site: str = ""
    """Why there is no site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDictionary:
    """One dictionary of a folder."""

    part: str = ""
    """Which of several of the folder it is, such as a layer; empty where it is the only one."""
    path: Path
    read: Callable[[], ReadDictionary]
    """Takes long, and raises DictionaryFormatError."""


def read_json(path: Path) -> Mapping[str, Any]:
    """A mapping of JSON or YAML."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DictionaryFormatError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DictionaryFormatError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise DictionaryFormatError(f"{path} is not a mapping of names to values")
    return values


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says which file is damaged, whatever zlib, zipfile or numpy make of it."""
    try:
        yield
    except Exception as error:
        raise DictionaryFormatError(f"{path} cannot be read as arrays: {error}") from error


class Tensors:
    """The tensors of a file, as float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix == ".npz":
            with _reading(path):
                zipfile.ZipFile(
                    path
                ).close()  # Of one that is none numpy would leave the file open.
                # Closed when it is gone; never with pickles in it.
                self._npz = np.load(path, allow_pickle=False)
                self.names = frozenset(self._npz.files)
        else:
            from safetensors import safe_open  # numpy has no bfloat16, so by way of torch.

            self._npz = None
            try:
                self._file = safe_open(path, framework="pt")
            except Exception as error:
                raise DictionaryFormatError(f"{path} is no safetensors file: {error}") from None
            self.names = frozenset(self._file.keys())

    def get(self, name: str, *shape: int | None) -> np.ndarray:
        """The tensor of that name, which must have this shape; None stands for any size."""
        found = self.maybe(name, *shape)
        if found is None:
            there = ", ".join(sorted(self.names)[:12])
            raise DictionaryFormatError(f"{self.path} has no {name}; it has {there}")
        return found

    def maybe(self, name: str, *shape: int | None) -> np.ndarray | None:
        """The same, or None if there is none."""
        if name not in self.names:
            return None
        if self._npz is not None:
            with _reading(self.path):
                values = np.ascontiguousarray(self._npz[name], np.float32)
        else:
            values = np.ascontiguousarray(self._file.get_tensor(name).float().numpy())
        fits = len(values.shape) == len(shape) and all(
            want in (None, got) for want, got in zip(shape, values.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if each is None else str(each) for each in shape)
            raise DictionaryFormatError(
                f"{self.path}: {name} has the shape {list(values.shape)}, but it should be "
                f"[{wanted}]; it may be the wrong way round"
            )
        if not np.isfinite(values).all():
            raise DictionaryFormatError(
                f"{self.path}: {name} has an element that is not finite as float32"
            )
        return values


def turned(matrix: np.ndarray) -> np.ndarray:
    """The transpose, laid out anew."""
    return np.ascontiguousarray(matrix.T)


def positive(thresholds: np.ndarray) -> np.ndarray:
    """The same for an activation that also makes zero of what is negative."""
    return np.maximum(thresholds, 0)


def refused(path: Path, field: str, value: object, why: str) -> DictionaryFormatError:
    """A field has a value that is not served."""
    return DictionaryFormatError(f"{path}: {field} is {value!r}, {why}")
