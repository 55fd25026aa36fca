"""Transcoders as the server hands them to its tracer process: a folder, with a file for each layer.

The folder is of one graph, readable by this user alone, and gone with it.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    Dictionary,
    DictionaryKind,
    DictionaryMatrices,
    LoadedDictionary,
)
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.domain.sites import HookPoint, Site


@asynccontextmanager
async def handed_on(
    registry: DictionaryRegistry, tenant: str, dictionaries: Sequence[str]
) -> AsyncIterator[str]:
    """The folder with these dictionaries, one for each layer in their order; empty for none.
    Raises as `DictionaryRegistry.load`."""
    if not dictionaries:
        yield ""
        return
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="actserve-transcoders-"))
    try:
        for layer, dictionary in enumerate(dictionaries):
            # One at a time: together they may take more memory than the server has.
            loaded = await registry.load(tenant, {dictionary: ("dictionaries", layer)})
            await asyncio.to_thread(write, folder, layer, loaded[dictionary])
        yield str(folder)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def write(folder: Path, layer: int, transcoder: LoadedDictionary) -> None:
    """Writes the transcoder of a layer."""
    of = transcoder.matrices
    parts = {
        "encoder": of.encoder,
        "encoder_bias": of.encoder_bias,
        "input_bias": of.input_bias,
        "thresholds": of.thresholds,
        "decoder": of.decoders[0],
        "decoder_bias": of.decoder_biases[0],
        "skip": of.skips[0],
    }
    save_file(
        {name: np.ascontiguousarray(each) for name, each in parts.items() if each is not None},
        _path(folder, layer),
        {"activation": transcoder.about.activation.value, "kept": str(transcoder.about.kept)},
    )


def read(folder: str) -> list[LoadedDictionary]:
    """The transcoders of all layers."""
    count = len(list(Path(folder).glob("*.safetensors")))
    return [_read(Path(folder), layer) for layer in range(count)]


def size_bytes(folder: str) -> int:
    """Of all of them."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _read(folder: Path, layer: int) -> LoadedDictionary:
    with safe_open(_path(folder, layer), "numpy") as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = file.metadata()
    matrices = DictionaryMatrices(
        encoder=parts["encoder"],
        encoder_bias=parts["encoder_bias"],
        input_bias=parts.get("input_bias"),
        thresholds=parts.get("thresholds"),
        decoders=(parts["decoder"],),
        decoder_biases=(parts.get("decoder_bias"),),
        skips=(parts.get("skip"),),
    )
    features, width = matrices.encoder.shape
    about = Dictionary(
        id=str(layer),
        kind=DictionaryKind.TRANSCODER,
        site=Site(HookPoint.MLP_IN, layer),
        written_sites=(Site(HookPoint.MLP_OUT, layer),),
        features=features,
        width=width,
        activation=ActivationKind(told["activation"]),
        kept=int(told["kept"]),
        size_bytes=matrices.nbytes,
        created_at_us=0,
        etag="",
    )
    return LoadedDictionary(about=about, matrices=matrices)


def _path(folder: Path, layer: int) -> Path:
    return folder / f"{layer}.safetensors"
