"""Random transcoders for the layers of tiny models."""

import numpy as np

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    Dictionary,
    DictionaryKind,
    DictionaryMatrices,
    LoadedDictionary,
)
from actserve_server.domain.sites import HookPoint, Site

FEATURES = 64


def transcoder(
    layer: int,
    activation: ActivationKind,
    *,
    skip: bool,
    width: int = 32,
    features: int = FEATURES,
) -> LoadedDictionary:
    """One that reads and writes at a layer. About half of its features are active."""
    numbers = np.random.default_rng(layer)

    def matrix(*shape: int) -> np.ndarray:
        return (0.2 * numbers.standard_normal(shape)).astype(np.float32)

    thresholds = np.abs(matrix(features)) if activation is ActivationKind.JUMP_RELU else None
    matrices = DictionaryMatrices(
        encoder=matrix(features, width),
        encoder_bias=matrix(features),
        input_bias=matrix(width),
        thresholds=thresholds,
        decoders=(matrix(features, width),),
        decoder_biases=(matrix(width),),
        skips=(matrix(width, width) if skip else None,),
    )
    about = Dictionary(
        id=f"layer-{layer}",
        kind=DictionaryKind.TRANSCODER,
        site=Site(HookPoint.MLP_IN, layer),
        written_sites=(Site(HookPoint.MLP_OUT, layer),),
        features=features,
        width=width,
        activation=activation,
        kept=20 if activation is ActivationKind.TOP_K else 0,
        size_bytes=matrices.nbytes,
        created_at_us=0,
        etag="",
    )
    return LoadedDictionary(about=about, matrices=matrices)
