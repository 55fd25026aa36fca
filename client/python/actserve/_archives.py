"""Archives: named arrays and a description of them, in one file that no program runs from.

The formats hold arrays and text alone: nothing in a file is ever unpickled or executed. Each has
an array of bytes, `metadata`, which is JSON: what kind of file it is, which format it has, the
version of the client that wrote it, and the description.
"""

import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

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
            safetensors.save_file(whole, path, metadata=dict(texts or {}))
        case _:
            raise unknown_suffix(path, (".npz", ".safetensors"))


def read_archive(path: str | PathLike[str], kind: str) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the description that `write_archive` wrote. Raises `ValueError` for any other
    file."""
    path = Path(path)
    match path.suffix:
        case ".npz":
            table = _read_npz(path, kind)
        case ".safetensors":
            table = _read_safetensors(path, kind)
        case _:
            raise unknown_suffix(path, (".npz", ".safetensors"))
    told = table.pop(METADATA, None)
    if told is None or told.dtype != np.uint8:
        raise not_ours(path, kind)
    return table, described_in(path, kind, told.tobytes())


def describe(kind: str, description: Mapping[str, Any]) -> str:
    """The metadata of a file, as JSON in ASCII."""
    header = {"kind": f"actserve {kind}", "format": _FORMAT, "client": client_version()}
    return json.dumps({**header, **description}, separators=(",", ":"))


def described_in(path: Path, kind: str, told: bytes) -> dict[str, Any]:
    """The description in a file's metadata. Raises `ValueError` unless it is of that kind."""
    try:
        metadata = json.loads(told)
    except ValueError:
        raise not_ours(path, kind) from None
    if not isinstance(metadata, dict) or metadata.get("kind") != f"actserve {kind}":
        raise not_ours(path, kind)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r} of a file of this kind, and this client "
            f"reads format {_FORMAT}; upgrade the client"
        )
    return metadata


def not_ours(path: Path, kind: str, why: object = "") -> ValueError:
    """The error of a file that something else wrote."""
    other = "" if "vector" in kind else "; SteeringVector.load reads those of steering vectors"
    return ValueError(
        f"{path} was not written as {kind} by actserve" + (f": {why}" if why else "") + other
    )


def unknown_suffix(path: Path, suffixes: tuple[str, ...]) -> ValueError:
    """The error of a path that names no format."""
    return ValueError(f"{path} names no format; let it end in {' or '.join(suffixes)}")


def client_version() -> str:
    """The version of this package; empty where it runs without being installed."""
    try:
        return version("actserve")
    except PackageNotFoundError:
        return ""


def _read_npz(path: Path, kind: str) -> Arrays:
    try:
        # Pickles run code; what is read here needs none.
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise not_ours(path, kind)
        with archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise not_ours(path, kind, error) from error


def _read_safetensors(path: Path, kind: str) -> Arrays:
    load_file = needed("safetensors.numpy", "safetensors files").load_file
    error = needed("safetensors", "safetensors files").SafetensorError
    try:
        return load_file(path)
    except (error, ValueError, TypeError, AttributeError) as wrong:
        raise not_ours(path, kind, wrong) from wrong
