"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and those before it.

    x' = norm_in(x) - b_dec        unless apply_b_dec_to_input is false, or it is a transcoder
    standard, topk, jumprelu       h = x' W_enc + b_enc
    gated                          f = relu(x' W_enc exp(r_mag) + b_mag) where x' W_enc + b_gate > 0
    y = f W_dec + b_dec (+ x W_skip^T)

A gated one is a JumpReLU: with h = x' (W_enc exp(r_mag)) + b_mag, its gate is open where h is above
b_mag - exp(r_mag) b_gate (Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse
Autoencoders", 2024).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    DictionaryKind,
    DictionaryMatrices,
)
from actserve_server.dictionaries.formats.format_files import (
    DictionaryFormatError,
    FoundDictionary,
    ReadDictionary,
    Tensors,
    positive,
    read_json,
    refused,
    turned,
)
from actserve_server.dictionaries.formats.hook_names import site_of, unknown

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""How each activates features."""
_AUTOENCODERS = ("standard", "gated", "topk", "jumprelu")
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
DEFAULT_K = 100
"""Of a topk without `k`."""


def find(folder: Path) -> list[FoundDictionary] | None:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return None
    return [FoundDictionary(path=folder, read=lambda: _read(folder))]


def _read(folder: Path) -> ReadDictionary:
    path = folder / CONFIG
    config = _config(read_json(path))
    architecture = config.get("architecture", "standard")
    if architecture == "standard" and config.get("activation_fn") == "topk":
        architecture = "topk"
    if architecture not in (*_AUTOENCODERS, *_TRANSCODERS):
        known = ", ".join((*_AUTOENCODERS, *_TRANSCODERS))
        raise refused(path, "architecture", architecture, f"which is not served; {known} are")
    _check(config, path)
    is_transcoder = architecture in _TRANSCODERS
    tensors = Tensors(folder / WEIGHTS)
    width, features = _size(config, "d_in", path), _size(config, "d_sae", path)
    out = _size(config, "d_out", path) if is_transcoder else width
    if "scaling_factor" in tensors.names:
        raise DictionaryFormatError(
            f"{tensors.path}: scaling_factor was not folded into the decoder; load and save it "
            "with SAELens first"
        )
    matrices, activation, kept = _matrices(
        tensors, _TRANSCODERS.get(architecture, architecture), config, width, features, out
    )
    b_dec = tensors.get("b_dec", out)
    subtracts = not is_transcoder and config.get("apply_b_dec_to_input", True)
    skip = tensors.get("W_skip", out, width) if "skip" in architecture else None
    matrices = replace(
        matrices,
        input_bias=b_dec if subtracts else None,
        decoder_biases=(b_dec,),
        skips=(skip,),
    )
    scale = config.get("activation_normalization_factor")
    if config.get("normalize_activations") == "constant_scalar_rescale":
        if not isinstance(scale, int | float) or not scale > 0 or is_transcoder:
            raise refused(path, "activation_normalization_factor", scale, "and must be above zero")
        matrices = _rescaled(matrices, float(scale))
    where, written = str(config.get("hook_name", "")), str(config.get("hook_name_out", ""))
    site, target = site_of(where), site_of(written) if is_transcoder else None
    unclear = next((each for each, at in ((where, site), (written, target)) if at is None), "")
    if not is_transcoder and site is not None:
        unclear = ""
    return ReadDictionary(
        kind=DictionaryKind.TRANSCODER if is_transcoder else DictionaryKind.SPARSE_AUTOENCODER,
        site=site,
        written_sites=() if target is None else (target,),
        activation=activation,
        kept=kept,
        matrices=matrices,
        model=str(config.get("model_name", "")),
        unknown_site=unknown(unclear) if unclear or site is None else "",
    )


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """All fields side by side, by the names of version 6."""
    flat = {**config.get("metadata", {}), **config}
    for old, new in _OLD_NAMES.items():
        if old in flat:
            flat.setdefault(new, flat[old])
    if flat.get("normalize_activations") is True:
        flat["normalize_activations"] = "expected_average_only_in"
    arguments = flat.get("activation_fn_kwargs")
    if isinstance(arguments, dict) and "k" in arguments:
        flat.setdefault("k", arguments["k"])
    return flat


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Raises for what cannot be folded into matrices, or is not known."""
    norm = config.get("normalize_activations", "none")
    if norm == "expected_average_only_in":
        raise refused(
            path,
            "normalize_activations",
            norm,
            "and by which number is not in the folder; fold it into the weights with SAELens "
            "(fold_activation_norm_scaling_factor) and save it again",
        )
    if norm not in ("none", False, None, "constant_scalar_rescale"):
        raise refused(
            path,
            "normalize_activations",
            norm,
            "which is not a number that the weights could be multiplied by; none is served",
        )
    function = config.get("activation_fn", "relu")
    if function not in ("relu", "topk", None):
        raise refused(path, "activation_fn", function, "which is not served; relu and topk are")
    if config.get("hook_head_index") is not None or config.get("hook_head_index_out") is not None:
        head = config.get("hook_head_index", config.get("hook_head_index_out"))
        raise refused(path, "hook_head_index", head, "and a dictionary of one head is not served")
    if config.get("reshape_activations", "none") not in ("none", None, "hook_z"):
        raise refused(
            path, "reshape_activations", config["reshape_activations"], "which is not served"
        )


def _matrices(
    tensors: Tensors,
    architecture: str,
    config: Mapping[str, Any],
    width: int,
    features: int,
    out: int,
) -> tuple[DictionaryMatrices, ActivationKind, int]:
    """Encoder, decoder and activation; what is added and subtracted elsewhere is not in it."""
    w_enc = tensors.get("W_enc", width, features)
    decoder = tensors.get("W_dec", features, out)
    thresholds, kept = None, 0
    if architecture == "gated":
        scale = np.exp(tensors.get("r_mag", features))
        encoder = turned(w_enc) * scale[:, None]
        bias = tensors.get("b_mag", features)
        thresholds = positive(bias - scale * tensors.get("b_gate", features))
    else:
        encoder, bias = turned(w_enc), tensors.get("b_enc", features)
    if architecture == "jumprelu":
        thresholds = positive(tensors.get("threshold", features))
    if architecture == "topk":
        kept = int(config.get("k", DEFAULT_K))
        if config.get("rescale_acts_by_decoder_norm", False):
            norms = np.linalg.norm(decoder, axis=1)
            encoder, bias = encoder * norms[:, None], bias * norms
            # A feature that writes nothing is zero either way.
            decoder = decoder / np.where(norms > 0, norms, 1)[:, None]
    activation = ActivationKind.RELU
    if thresholds is not None:
        activation = ActivationKind.JUMP_RELU
    elif kept:
        activation = ActivationKind.TOP_K
    matrices = DictionaryMatrices(
        encoder=encoder,
        encoder_bias=bias,
        thresholds=thresholds,
        decoders=(decoder,),
        decoder_biases=(None,),
        skips=(None,),
    )
    return matrices, activation, kept


def _rescaled(of: DictionaryMatrices, scale: float) -> DictionaryMatrices:
    """The same for rows that were multiplied by a number before."""

    def shrunk(vector: np.ndarray | None) -> np.ndarray | None:
        return None if vector is None else vector / np.float32(scale)

    return replace(
        of,
        encoder=of.encoder * np.float32(scale),
        input_bias=shrunk(of.input_bias),
        decoders=tuple(each / np.float32(scale) for each in of.decoders),
        decoder_biases=tuple(map(shrunk, of.decoder_biases)),
    )


def _size(config: Mapping[str, Any], name: str, path: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise refused(path, name, value, "and must be a number above zero")
    return value
