"""Converts what SAELens can load and the server does not read, once, into a folder that it reads.

SAELens (Bloom, Tigges, Duong and Chanin, https://github.com/decoderesearch/SAELens) knows where the
dictionaries of many projects are and how each is laid out. It is the extra `saelens`, is needed for
this alone, and is never imported by a server: what it downloads may be pickles.
"""

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from actserve_server.dictionaries.dictionary import (
    Dictionary,
    DictionaryKind,
    LoadedDictionary,
)
from actserve_server.dictionaries.formats.format_files import (
    DictionaryFormatError,
    ReadDictionary,
)
from actserve_server.dictionaries.formats.read_folder import found_in
from actserve_server.domain.sites import HookPoint, Site

ROWS = 64
"""Random ones, of which both are asked for features."""
TOLERANCE = 1e-4


class ConversionError(Exception):
    """What is wrong, for whoever runs the command."""


def convert(release: str, sae: str, folder: Path) -> str:
    """Has SAELens load a dictionary by its names for it, save it, and compares what the server
    reads of that. Returns what was converted, for people. Raises ConversionError, and then leaves
    no folder."""
    if folder.exists():
        raise ConversionError(f"{folder} is there already; name a folder that is not")
    library = _library()
    try:
        loaded = library.SAE.from_pretrained(release, sae, device="cpu")
    except Exception as error:
        raise ConversionError(f"SAELens cannot load {sae!r} of {release!r}: {error}") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        loaded.save_model(folder)
        read = _read(folder)
        _compare(loaded, read)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    features, width = read.matrices.encoder.shape
    kind = "transcoder" if read.kind is DictionaryKind.TRANSCODER else "sparse autoencoder"
    where = read.site or f"an unknown site ({read.unknown_site})"
    return f"a {kind} of {features} features, {width} wide, at {where} of {read.model or 'a model'}"


def _library() -> Any:
    try:
        return importlib.import_module("sae_lens")
    except ImportError:
        raise ConversionError(
            "SAELens is not installed; install the extra: pip install 'actserve-server[saelens]'"
        ) from None


def _read(folder: Path) -> ReadDictionary:
    try:
        (found,) = found_in(folder)
        return found.read()
    except DictionaryFormatError as error:
        raise ConversionError(f"what SAELens has loaded is not served: {error}") from None


def _compare(library: Any, read: ReadDictionary) -> None:
    """Raises unless features are those of SAELens."""
    import torch

    features, width = read.matrices.encoder.shape
    # As long as rows are: some SAEs are trained on rows whose squares add up to their width.
    rows = np.random.default_rng(0).standard_normal((ROWS, width)).astype(np.float32)
    with torch.no_grad():
        wanted = library.encode(torch.from_numpy(rows)).float().numpy()
    about = Dictionary(
        id="converted",
        kind=read.kind,
        site=read.site or Site(HookPoint.EMBEDDING),
        written_sites=read.written_sites,
        features=features,
        width=width,
        activation=read.activation,
        kept=read.kept,
        size_bytes=read.matrices.nbytes,
        created_at_us=0,
        etag="",
    )
    found = LoadedDictionary(about=about, matrices=read.matrices).encode(rows)
    if not np.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * np.abs(wanted).max()):
        raise ConversionError(
            f"features of {ROWS} random rows differ from those of SAELens by up to "
            f"{np.abs(found - wanted).max():.3g}, of at most {np.abs(wanted).max():.3g}; it is not "
            "converted"
        )
