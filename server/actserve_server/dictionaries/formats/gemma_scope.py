"""Gemma Scope, whose features are JumpReLUs.

The first (Lieberum et al., 2024) has a `params.npz` in a folder such as
`layer_20/width_16k/average_l0_71`, and says where it belongs by its path alone. The second has
`params.safetensors` and a `config.json`, which names the modules of Hugging Face's model. Neither
subtracts the decoder's bias from what it reads.
"""

import re
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
    positive,
    read_json,
    refused,
    turned,
)
from actserve_server.dictionaries.formats.hook_names import site_of, unknown
from actserve_server.domain.sites import HookPoint, Site

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"

_LAYER = re.compile(r"layer_(\d{1,5})")
_REPOSITORY = re.compile(
    r"(?:.*--)?(gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders))", re.IGNORECASE
)
_SITES = {"res": HookPoint.RESID_POST, "mlp": HookPoint.MLP_OUT, "att": HookPoint.Z}


def find(folder: Path) -> list[FoundDictionary] | None:
    if (folder / FIRST).is_file():
        return [FoundDictionary(path=folder, read=lambda: _read_first(folder))]
    if (folder / SECOND).is_file() and (folder / CONFIG).is_file():
        return [FoundDictionary(path=folder, read=lambda: _read_second(folder))]
    return None


def _read_first(folder: Path) -> ReadDictionary:
    matrices = _matrices(Tensors(folder / FIRST))
    parts = folder.resolve().parts
    layers = [int(found[1]) for part in parts if (found := _LAYER.fullmatch(part))]
    repositories = [found for part in parts if (found := _REPOSITORY.fullmatch(part))]
    if not layers or not repositories:
        return ReadDictionary(
            kind=DictionaryKind.SPARSE_AUTOENCODER,
            site=None,
            activation=ActivationKind.JUMP_RELU,
            matrices=matrices,
            unknown_site=f"the path {folder} does not hold a repository of Gemma Scope, such as "
            "gemma-scope-2b-pt-res, and a layer, such as layer_20",
        )
    layer, kind = layers[-1], repositories[-1][4].lower()
    is_transcoder = kind == "transcoders"
    # The models that are called pt have no suffix in their own name.
    suffix = "" if repositories[-1][3] == "pt" else "-it"
    return ReadDictionary(
        kind=DictionaryKind.TRANSCODER if is_transcoder else DictionaryKind.SPARSE_AUTOENCODER,
        site=Site(HookPoint.MLP_IN if is_transcoder else _SITES[kind], layer),
        written_sites=(Site(HookPoint.MLP_OUT, layer),) if is_transcoder else (),
        activation=ActivationKind.JUMP_RELU,
        matrices=matrices,
        model=f"gemma-2-{repositories[-1][2]}{suffix}",
    )


def _read_second(folder: Path) -> ReadDictionary:
    path = folder / CONFIG
    config = read_json(path)
    if config.get("architecture") != "jump_relu":
        raise refused(
            path, "architecture", config.get("architecture"), "which is not served; jump_relu is"
        )
    where = str(config.get("hf_hook_point_in", ""))
    written = str(config.get("hf_hook_point_out") or where)
    kind = config.get("type", "sae")
    if kind not in ("sae", "transcoder"):
        raise refused(path, "type", kind, "which is not served; sae and transcoder are")
    is_transcoder = kind == "transcoder"
    site, target = site_of(where), site_of(written)
    unclear = where if site is None else written if is_transcoder and target is None else ""
    return ReadDictionary(
        kind=DictionaryKind.TRANSCODER if is_transcoder else DictionaryKind.SPARSE_AUTOENCODER,
        site=site,
        written_sites=(target,) if is_transcoder and target is not None else (),
        activation=ActivationKind.JUMP_RELU,
        matrices=_matrices(Tensors(folder / SECOND)),
        model=str(config.get("model_name", "")),
        unknown_site=unknown(unclear) if unclear else "",
    )


def _matrices(tensors: Tensors) -> DictionaryMatrices:
    def name(of: str) -> str:
        """Some files spell it W_enc, others w_enc."""
        return next((each for each in tensors.names if each.lower() == of), of)

    features = len(tensors.get(name("b_enc"), None))
    out = len(tensors.get(name("b_dec"), None))
    w_enc = tensors.get(name("w_enc"), None, features)
    # Applied as x @ A, so that A transposed is the skip.
    affine = tensors.maybe(name("affine_skip_connection"), len(w_enc), out)
    return DictionaryMatrices(
        encoder=turned(w_enc),
        encoder_bias=tensors.get(name("b_enc"), features),
        thresholds=positive(tensors.get(name("threshold"), features)),
        decoders=(tensors.get(name("w_dec"), features, out),),
        decoder_biases=(tensors.get(name("b_dec"), out),),
        skips=(None if affine is None else turned(affine),),
    )
