"""Vector files: steering vectors in the formats that others read and write.

| suffix | what it is | sites |
|---|---|---|
| `.safetensors`, `.npz` | an array [width] for each site, by its name | in the file |
| `.npy` | one array, [width] or [sites, width] | told by the caller |
| `.gguf` | a control vector of llama.cpp and repeng | `resid_post.L`, from 1 on |
| `.json` | a vector of Neuronpedia | one |

A file that is larger than any vector would make it, or says that it holds more than it does, is
refused before anything is made of it; nothing in a file is unpickled or executed.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from actserve._archives import (
    METADATA,
    Arrays,
    float_tensors,
    opened,
    read_archive,
    read_array,
    write_archive,
)
from actserve._gguf_vectors import read_gguf, write_gguf
from actserve._neuronpedia_vectors import read_neuronpedia, write_neuronpedia
from actserve._vector_rows import vector_rows
from actserve.errors import InvalidRequest
from actserve.sites import Site, SiteLike
from actserve.steering_vectors import SteeringVector

SUFFIXES = (".safetensors", ".npz", ".npy", ".gguf", ".json")
"""The formats, by the suffix of their files."""

_MAX_BYTES = 256 << 20
"""Of a file that is read: 32 times what a vector of 128 layers, each 16384 wide, takes."""

_MAX_JSON_BYTES = 16 << 20
"""The same of JSON, which is one row and takes more memory than it has bytes."""

_KIND = "steering vectors"


def load_vectors(
    path: str | PathLike[str], sites: SiteLike | Iterable[SiteLike] | None = None
) -> list[SteeringVector]:
    """The steering vectors of a file, one for each site, float32: one of `save_vectors` or of
    `SteeringVector.save`, or one that another program wrote.

    - `sites`: where the rows belong, for files that do not say it: `.npy`, and `.npz` or
      `.safetensors` of one array whose name is no site.

    Raises `ValueError` with the reason for a file that cannot be read so.

        client.vectors.store("joy", actserve.load_vectors("joy.gguf"))
        client.vectors.store("joy", actserve.load_vectors("joy.npy", "resid_post.12"))
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise _unknown(path)
    size, limit = path.stat().st_size, _MAX_JSON_BYTES if path.suffix == ".json" else _MAX_BYTES
    if size > limit:
        raise ValueError(f"{path} has {size} bytes; a vector in {path.suffix} has {limit} at most")
    with _reading(path):
        match path.suffix:
            case ".npy":
                rows = read_array(lambda: path.open("rb"), path.name, size)
                return vector_rows(rows, _told(sites))
            case ".gguf":
                _check_untold(sites)
                return read_gguf(path)
            case ".json":
                _check_untold(sites)
                return read_neuronpedia(path)
            case _:
                return _of_archive(path, sites)


def save_vectors(path: str | PathLike[str], vector: Any, *, model: str = "") -> None:
    """Writes a vector in the format of the suffix: `.safetensors`, `.npz`, `.npy`, `.gguf` or
    `.json`, as `vector_files` says.

    - `vector`: a `SteeringVector` or several of different sites, arrays by site, repeng's
      `ControlVector`, or a `StoredVector` with its elements.
    - `model`: what the format calls the model: of `.gguf` its `model_type`, such as "llama", and of
      `.json` its id at Neuronpedia, which is needed there.

    Raises `ValueError` for what the format cannot hold: `.gguf` only `resid_post` from layer 1 on,
    `.json` only one residual site. `.npy` does not hold the sites.

        actserve.save_vectors("joy.gguf", client.vectors.get("joy", elements=True), model="llama")
    """
    path, rows = Path(path), vector_rows(vector)
    match path.suffix:
        case ".npy":
            values = np.stack([row.values for row in rows])
            np.save(path, values[0] if len(rows) == 1 else values, allow_pickle=False)
        case ".gguf":
            write_gguf(path, rows, model)
        case ".json":
            write_neuronpedia(path, rows, model)
        case ".safetensors" | ".npz":
            if len(rows) == 1:  # Which `SteeringVector.load` reads.
                rows[0].save(path)
                return
            told = {"provenances": {str(row.site): row.provenance for row in rows}}
            write_archive(path, _KIND, {str(row.site): row.values for row in rows}, told)
        case _:
            raise _unknown(path)


def _of_archive(path: Path, sites: SiteLike | Iterable[SiteLike] | None) -> list[SteeringVector]:
    with opened(path) as (there, arrays):
        if METADATA not in there:
            found = arrays([*there]) if path.suffix == ".npz" else float_tensors(path)
            return _of_arrays(found, sites)
        one = "values" in there
    _check_untold(sites)
    if one:
        return [SteeringVector.load(path)]
    found, description = read_archive(path, _KIND, lambda told: [*told["provenances"]])
    notes: Mapping[str, str] = description["provenances"]
    return vector_rows([SteeringVector(site, found[site], notes[site]) for site in notes])


def _of_arrays(arrays: Arrays | Any, sites: Any) -> list[SteeringVector]:
    """Arrays that another program named: by their sites, or as it liked if there is only one."""
    if sites is None:
        try:
            return vector_rows({Site.parse(name): array for name, array in arrays.items()})
        except InvalidRequest as error:
            if error.reason != "SITE_INVALID":
                raise
            raise ValueError(
                f"its arrays {', '.join(arrays)} are not named by sites such as resid_post.10; "
                "say where they belong"
            ) from None
    if len(arrays) != 1:
        raise ValueError(f"it has {len(arrays)} arrays, and sites are told for one")
    (array,) = arrays.values()
    return vector_rows(array, _told(sites))


def _told(sites: SiteLike | Iterable[SiteLike] | None) -> SiteLike | Iterable[SiteLike]:
    if sites is None:
        raise ValueError(
            "it does not say its sites; name one for each row, as in "
            "load_vectors(path, 'resid_post.12') or --site resid_post.12"
        )
    return sites


def _check_untold(sites: object) -> None:
    if sites is not None:
        raise ValueError("it says its sites itself; leave them out")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file in what is wrong with it, whatever its reader trips over."""
    path.open("rb").close()  # A file that is missing or not ours to read is not damaged.
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        why = error.message if isinstance(error, InvalidRequest) else error
        raise ValueError(f"{path} cannot be read as vectors: {why}") from error


def _unknown(path: Path) -> ValueError:
    return ValueError(
        f"{path} names no format of vectors; let it end in {', '.join(SUFFIXES)}. Pickles, such as "
        ".pt and .bin, run code and are not read"
    )
