"""Folders of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, or a folder for each site.

    f = topk(relu(encoder(x - b_dec)))       a transcoder does not subtract b_dec
    y = f W_dec + b_dec (+ x W_skip^T)

The folder is named after the module whose output it is of, such as `layers.5` or `layers.5.mlp`; a
transcoder reads that module's input.
"""

from pathlib import Path

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    DictionaryKind,
    DictionaryMatrices,
)
from actserve_server.dictionaries.formats.format_files import (
    FoundDictionary,
    ReadDictionary,
    Tensors,
    read_json,
    refused,
)
from actserve_server.dictionaries.formats.hook_names import site_of, unknown
from actserve_server.domain.sites import HookPoint, Site

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def find(folder: Path) -> list[FoundDictionary] | None:
    if _is_one(folder):
        return [FoundDictionary(path=folder, read=lambda: _read(folder))]
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and _is_one(path))
    found = [
        FoundDictionary(
            part=path.name.replace(".", "-").replace("_", "-"),
            path=path,
            read=lambda path=path: _read(path),
        )
        for path in inner
    ]
    return found or None


def _is_one(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _read(folder: Path) -> ReadDictionary:
    path = folder / CONFIG
    config = read_json(path)
    if config.get("signed"):
        raise refused(path, "signed", True, "and features of both signs are not served")
    if (activation := config.get("activation", "topk")) != "topk":
        raise refused(path, "activation", activation, "which is not served; topk is")
    kept = config.get("k")
    if not isinstance(kept, int) or kept < 1:
        raise refused(path, "k", kept, "and must be a number above zero")
    width = config.get("d_in")
    if not isinstance(width, int) or width < 1:
        raise refused(path, "d_in", width, "and must be a number above zero")
    features = config.get("num_latents") or width * config.get("expansion_factor", 32)
    tensors = Tensors(folder / WEIGHTS)
    b_dec = tensors.get("b_dec", width)
    is_transcoder = bool(config.get("transcode"))
    matrices = DictionaryMatrices(
        encoder=tensors.get("encoder.weight", features, width),
        encoder_bias=tensors.get("encoder.bias", features),
        input_bias=None if is_transcoder else b_dec,
        decoders=(tensors.get("W_dec", features, width),),
        decoder_biases=(b_dec,),
        skips=(tensors.maybe("W_skip", width, width),),
    )
    site = target = site_of(folder.name)
    if is_transcoder and target is not None:
        site = Site(HookPoint.MLP_IN, target.layer)
        if target.hook_point is not HookPoint.MLP_OUT:
            site = target = None
    return ReadDictionary(
        kind=DictionaryKind.TRANSCODER if is_transcoder else DictionaryKind.SPARSE_AUTOENCODER,
        site=site,
        written_sites=(target,) if is_transcoder and target is not None else (),
        activation=ActivationKind.TOP_K,
        kept=kept,
        matrices=matrices,
        unknown_site="" if site is not None else unknown(folder.name),
    )
