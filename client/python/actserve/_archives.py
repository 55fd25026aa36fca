"""Archives: named arrays and a description of them, in one file that no program runs from.

The formats hold arrays and text alone: nothing in a file is ever unpickled or executed. Each has
an array of bytes, `metadata`, which is JSON: what kind of file it is, which format it has, the
version of the client that wrote it, and the description.
"""

import json
import math
import stat
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._extras import needed

Arrays = dict[str, NDArray[Any]]

METADATA = "metadata"
_FORMAT = 1
"""Raised when an older client could no longer read the files."""


def write_archive(
    path: str | PathLike[str],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    description: Mapping[str, Any],
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays and their description in the format of the suffix, `.npz` or `.safetensors`.
    `texts` go into the header of safetensors, which holds no arrays of text."""
    path = Path(path)
    told = describe(kind, description)
    table: dict[str, Any] = {**arrays, METADATA: np.frombuffer(told.encode(), np.uint8)}
    match path.suffix:
        case ".npz":
            np.savez(path, **table)
        case ".safetensors":
            safetensors = needed("safetensors.numpy", "safetensors files")
            whole = {name: np.ascontiguousarray(array) for name, array in table.items()}
            # By itself it makes a file that nobody else may read, whatever the umask says.
            path.open("ab").close()
            mode = stat.S_IMODE(path.stat().st_mode)
            safetensors.save_file(whole, path, metadata=dict(texts or {}))
            path.chmod(mode)
        case _:
            raise unknown_suffix(path, (".npz", ".safetensors"))


def read_archive(
    path: str | PathLike[str], kind: str, names: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[Arrays, dict[str, Any]]:
    """The description that `write_archive` wrote, and of the arrays those that are there of the
    names that it asks for. Raises `ValueError` for any other file."""
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise unknown_suffix(path, (".npz", ".safetensors"))
    with reading(path, kind), opened(path) as (there, arrays):
        told = arrays([METADATA])[METADATA] if METADATA in there else None
        if told is None or told.dtype != np.uint8:
            raise not_ours(path, kind)
        description = described_in(path, kind, told.tobytes())
        wanted = dict.fromkeys(names(description))
        return arrays([name for name in wanted if name in there]), description


class NotOurs(ValueError):
    """A file that something else wrote, or that is damaged."""


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a reader trips over in a file into `ValueError`: a damaged one may make zlib,
    zipfile, numpy or Arrow raise almost anything."""
    path.open("rb").close()  # A file that is missing or not ours to read is not damaged.
    try:
        yield
    except (NotOurs, ImportError):
        raise
    except Exception as error:
        raise not_ours(path, kind, error) from error


def describe(kind: str, description: Mapping[str, Any]) -> str:
    """The metadata of a file, as JSON in ASCII."""
    header = {"kind": f"actserve {kind}", "format": _FORMAT, "client": client_version()}
    return json.dumps({**header, **description}, separators=(",", ":"))


def described_in(path: Path, kind: str, told: bytes) -> dict[str, Any]:
    """The description in a file's metadata. Raises `ValueError` unless it is of that kind."""
    try:
        metadata = json.loads(told)
    except (ValueError, RecursionError):
        raise not_ours(path, kind) from None
    if not isinstance(metadata, dict) or metadata.get("kind") != f"actserve {kind}":
        raise not_ours(path, kind)
    if metadata.get("format") != _FORMAT:
        raise NotOurs(
            f"{path} has format {metadata.get('format')!r} of a file of this kind, and this client "
            f"reads format {_FORMAT}; upgrade the client"
        )
    return metadata


def not_ours(path: Path, kind: str, why: object = "") -> NotOurs:
    """The error of a file that something else wrote."""
    other = "" if "vector" in kind else "; SteeringVector.load reads those of steering vectors"
    return NotOurs(
        f"{path} was not written as {kind} by actserve" + (f": {why}" if why else "") + other
    )


def unknown_suffix(path: Path, suffixes: tuple[str, ...], *, has_frame: bool = False) -> ValueError:
    """The error of a path that names no format. What `has_frame` can become CSV by pandas."""
    csv = path.suffix == ".csv" and has_frame
    fix = f", or write CSV by to_pandas().to_csv({str(path)!r})" if csv else ""
    return ValueError(f"{path} names no format; let it end in {' or '.join(suffixes)}{fix}")


def client_version() -> str:
    """The version of this package; empty where it runs without being installed."""
    try:
        return version("actserve")
    except PackageNotFoundError:
        return ""


Opened: TypeAlias = "tuple[Collection[str], Callable[[Sequence[str]], Arrays]]"
"""The names of a file's arrays, and what reads several of them."""


def opened(path: Path) -> AbstractContextManager[Opened]:
    """An archive, of which nothing is read but the names of its arrays."""
    return _npz(path) if path.suffix == ".npz" else _safetensors(path)


@contextmanager
def _npz(path: Path) -> Iterator[Opened]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def arrays(names: Sequence[str]) -> Arrays:
            # What we write is not compressed, so that no file inflates beyond its own size.
            inflated, size = sum(members[name].file_size for name in names), path.stat().st_size
            if inflated > size:
                raise ValueError(f"its arrays of {inflated} bytes are larger than its {size}")
            return {
                name: read_array(
                    partial(archive.open, members[name]), name, members[name].file_size
                )
                for name in names
            }

        yield members, arrays


def read_array(open_file: Callable[[], IO[bytes]], name: str, size: int) -> NDArray[Any]:
    """The array of a file in numpy's format, which has so many bytes. Raises `ValueError` where it
    says that it has more, and for objects, which would be unpickled."""
    # The shape that the header tells is made before it is read.
    with open_file() as file:
        if (found := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"{name} has version {found} of numpy's format, not (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"{name} is shorter than its shape {shape} of {dtype}")
    with open_file() as file:
        # Pickles run code; what is read here needs none.
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _safetensors(path: Path) -> Iterator[Opened]:
    safe_open = needed("safetensors", "safetensors files").safe_open
    with safe_open(path, "numpy") as file:
        yield file.keys(), lambda names: {name: file.get_tensor(name) for name in names}


def float_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of floats in a safetensors file, as float32; numpy cannot read bfloat16."""
    deserialize = needed("safetensors", "safetensors files").deserialize
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, tensor in deserialize(path.read_bytes()):
        kind = tensor["dtype"]
        if kind not in kinds:  # Of counters, and of bytes.
            continue
        array = np.frombuffer(tensor["data"], kinds[kind]).reshape(tensor["shape"])
        if kind == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = array.astype(np.float32)
    return arrays
