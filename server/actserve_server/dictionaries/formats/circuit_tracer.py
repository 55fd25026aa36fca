"""Sets of circuit-tracer: `config.yaml`, and a transcoder for every layer.

A set of per-layer transcoders has `layer_{i}.safetensors`; one of cross-layer transcoders has
`W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`, whose slice j writes to layer i + j. Encoders
have a row for each feature, as ours do and those of SAELens do not. Each cross-layer transcoder is
a dictionary by itself. What they write to a layer adds up, so its bias is given to the one that
reads that layer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
)
from actserve_server.dictionaries.formats.hook_names import site_of, unknown
from actserve_server.domain.sites import Site

CONFIG = "config.yaml"
_PER_LAYER = re.compile(r"layer_(\d{1,5})\.safetensors")
_CROSS_LAYER = re.compile(r"W_enc_(\d{1,5})\.safetensors")
_THRESHOLDS = "activation_function.threshold"


def find(folder: Path) -> list[FoundDictionary] | None:
    if not (folder / CONFIG).is_file():
        return None
    per_layer, cross_layer = _layers(folder, _PER_LAYER), _layers(folder, _CROSS_LAYER)
    if not per_layer and not cross_layer:
        return None
    config, found = read_json(folder / CONFIG), per_layer or cross_layer
    layers = sorted(found)
    if layers != list(range(len(layers))):
        raise DictionaryFormatError(
            f"{folder} has the layers {layers}, and must have every one from 0 on"
        )
    read = _read_layer if per_layer else _read_cross_layer
    return [
        FoundDictionary(
            part=str(layer),
            path=found[layer],
            read=lambda layer=layer: read(folder, config, layer, len(layers)),
        )
        for layer in layers
    ]


def _layers(folder: Path, form: re.Pattern[str]) -> dict[int, Path]:
    return {
        int(found[1]): path for path in folder.iterdir() if (found := form.fullmatch(path.name))
    }


def _read_layer(folder: Path, config: Mapping[str, Any], layer: int, layers: int) -> ReadDictionary:
    tensors = Tensors(folder / f"layer_{layer}.safetensors")
    features, width = len(tensors.get("b_enc", None)), len(tensors.get("b_dec", None))
    thresholds = tensors.maybe(_THRESHOLDS, features)
    if thresholds is None:
        thresholds = tensors.maybe("threshold", features)
    activation, kept = _activation(folder, config, tensors, has_thresholds=thresholds is not None)
    matrices = DictionaryMatrices(
        encoder=tensors.get("W_enc", features, width),
        encoder_bias=tensors.get("b_enc", features),
        thresholds=None if thresholds is None else positive(thresholds),
        decoders=(tensors.get("W_dec", features, width),),
        decoder_biases=(tensors.get("b_dec", width),),
        skips=(tensors.maybe("W_skip", width, width),),
    )
    return _described(config, layer, [layer], activation, kept, matrices)


def _read_cross_layer(
    folder: Path, config: Mapping[str, Any], layer: int, layers: int
) -> ReadDictionary:
    tensors = Tensors(folder / f"W_enc_{layer}.safetensors")
    bias = tensors.get(f"b_dec_{layer}", None)
    features, width = len(tensors.get(f"b_enc_{layer}", None)), len(bias)
    written = range(layer, layers)
    decoders = Tensors(folder / f"W_dec_{layer}.safetensors").get(
        f"W_dec_{layer}", features, len(written), width
    )
    thresholds = tensors.maybe(f"threshold_{layer}", features)
    activation, kept = _activation(folder, config, tensors, has_thresholds=thresholds is not None)
    matrices = DictionaryMatrices(
        encoder=tensors.get(f"W_enc_{layer}", features, width),
        encoder_bias=tensors.get(f"b_enc_{layer}", features),
        thresholds=None if thresholds is None else positive(thresholds),
        decoders=tuple(decoders[:, each].copy() for each in range(len(written))),
        decoder_biases=(bias, *[None] * (len(written) - 1)),
        skips=(None,) * len(written),
    )
    return _described(config, layer, written, activation, kept, matrices)


def _activation(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, *, has_thresholds: bool
) -> tuple[ActivationKind, int]:
    named = config.get("activation")
    if has_thresholds:
        return ActivationKind.JUMP_RELU, 0
    if named == "topk" or "k" in tensors.names:
        kept = int(tensors.get("k")) if "k" in tensors.names else config.get("k")
        if not isinstance(kept, int) or kept < 1:
            raise refused(folder / CONFIG, "k", kept, "and must be a number above zero")
        return ActivationKind.TOP_K, kept
    if named not in (None, "relu"):
        raise refused(
            folder / CONFIG, "activation", named, "which is not served; relu and topk are"
        )
    return ActivationKind.RELU, 0


def _described(
    config: Mapping[str, Any],
    layer: int,
    written: "list[int] | range",
    activation: ActivationKind,
    kept: int,
    matrices: DictionaryMatrices,
) -> ReadDictionary:
    hook_in, hook_out = (
        str(config.get(name, "")) for name in ("feature_input_hook", "feature_output_hook")
    )
    site = site_of(f"blocks.{layer}.{hook_in}")
    targets = [site_of(f"blocks.{each}.{hook_out}") for each in written]
    known: tuple[Site, ...] = tuple(each for each in targets if each is not None)
    unclear = hook_in if site is None else hook_out if len(known) < len(targets) else ""
    return ReadDictionary(
        kind=DictionaryKind.TRANSCODER,
        site=site,
        written_sites=known,
        activation=activation,
        kept=kept,
        matrices=matrices,
        model=str(config.get("model_name", "")),
        unknown_site=unknown(f"blocks.{layer}.{unclear}") if unclear else "",
    )
