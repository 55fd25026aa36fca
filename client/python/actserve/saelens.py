"""SAELens: its sparse autoencoders and transcoders, as projections and as whole dictionaries.

SAELens (Bloom, Tigges, Duong and Chanin, https://github.com/decoderesearch/SAELens) encodes a row x
as a((x - b_dec) W_enc + b_enc), with or without b_dec, which is a projection with the directions
W_enc^T. An SAE is given as its object, of which only attributes are read, or as the folder that
`save_model` wrote, `cfg.json` and `sae_weights.safetensors`; SAELens itself is not needed.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from actserve._archives import float_tensors
from actserve._checks import described, finite
from actserve.dictionary_matrices import Dictionary
from actserve.errors import InvalidRequest
from actserve.projections import Activation, JumpReLU, Projection, TopK
from actserve.sites import Site, SiteLike
from actserve.tensors import Float32Array, as_array

Sae: TypeAlias = "str | PathLike[str] | Any"
"""An SAE or transcoder of SAELens, or the folder it was saved in."""

_RELU = ("standard", "transcoder", "skip_transcoder")
_JUMP_RELU = ("jumprelu", "jumprelu_transcoder")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder")

_BATCH = (
    "it chooses among all rows of a batch; save it for inference, which makes it a JumpReLU SAE"
)
_NO_ARCHITECTURE = {
    "batchtopk": _BATCH,
    "matryoshka_batchtopk": _BATCH,
    "abstopk": "it keeps the components of the largest magnitude, and a projection those of the "
    "largest value",
    "matching_pursuit": "it encodes in many steps, each of what is left",
    "temporal": "it attends to earlier tokens",
}
_NO_NORMALIZATION = {
    "expected_average_only_in": "it was trained on rows times a number, which it does not say; "
    "give the number as input_scale, or fold it in with fold_activation_norm_scaling_factor",
    "constant_norm_rescale": "it divides each row by its norm, which is not linear",
    "layer_norm": "it divides each row by its standard deviation, which is not linear",
    "covariance_whitening": "its whitening is not among its weights; fold it in with "
    "fold_activation_whitening",
}


def saelens_site(sae: Sae) -> Site:
    """The site that an SAE of SAELens reads, by the hook name in its metadata.

    Raises `InvalidRequest` where it says none, or one that is no site here.

        sae = "saes/layer-10"
        read = actserve.Read(actserve.saelens_site(sae), projection=Projection.from_saelens(sae))
    """
    hook = _opened(sae).hook_name
    if not isinstance(hook, str):
        raise _refused("its metadata does not name the hook that it reads; give the site yourself")
    return Site.parse(hook)


def projection_from_saelens(
    sae: Sae, *, input_scale: float | None = None, send_top: int | None = None
) -> Projection:
    """See `Projection.from_saelens`."""
    opened = _opened(sae)
    _check_expressible(opened, input_scale)
    weights, bias = opened.encoder()
    if opened.architecture not in _TRANSCODERS and opened.apply_b_dec_to_input:
        bias -= opened.weight("b_dec", "rows").astype(np.float64) @ weights
    if input_scale is not None:
        weights *= finite(input_scale, "input_scale")
    if opened.architecture == "topk" and opened.rescale_acts_by_decoder_norm:
        norms = np.linalg.norm(
            opened.weight("W_dec", "features", "rows").astype(np.float64), axis=1
        )
        weights, bias = weights * norms, bias * norms
    return Projection(weights.T, bias, _activation(opened), send_top)


def dictionary_from_saelens(
    sae: Sae,
    *,
    site: SiteLike | None = None,
    written_sites: SiteLike | Iterable[SiteLike] | None = None,
    input_scale: float | None = None,
) -> Dictionary:
    """See `Dictionary.from_saelens`."""
    opened = _opened(sae)
    _check_expressible(opened, input_scale)
    is_transcoder = opened.architecture in _TRANSCODERS
    if is_transcoder and input_scale is not None:
        raise _refused("input_scale is of autoencoders, whose input is also their output")
    if is_transcoder and written_sites is None:
        if not isinstance(opened.hook_name_out, str):
            raise _refused("its metadata does not name the hook that it writes; give written_sites")
        written_sites = Site.parse(opened.hook_name_out)
    weights, bias = opened.encoder()
    encoder = weights.T
    decoder = opened.weight("W_dec", "features", "rows").astype(np.float64)
    out = opened.weight("b_dec", "rows").astype(np.float64)
    if input_scale is not None:
        factor = finite(input_scale, "input_scale")
        encoder, decoder, out = encoder * factor, decoder / factor, out / factor
    if opened.architecture == "topk" and opened.rescale_acts_by_decoder_norm:
        norms = np.linalg.norm(decoder, axis=1)
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms[:, None]
    has_skip = opened.architecture == "skip_transcoder"
    return Dictionary(
        site=saelens_site(sae) if site is None else site,
        written_sites=written_sites or (),
        encoder=opened.stored(encoder),
        encoder_bias=opened.stored(bias),
        input_bias=opened.stored(out)
        if opened.apply_b_dec_to_input and not is_transcoder
        else None,
        decoder=opened.stored(decoder),
        decoder_bias=opened.stored(out),
        skip=opened.weight("W_skip", "out", "rows") if has_skip else None,
        activation=_activation(opened),
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What is known of an SAE, however it was given."""

    architecture: str
    apply_b_dec_to_input: bool
    normalization: str
    rescale_acts_by_decoder_norm: bool
    activation_fn: str
    """Of SAELens before 6.0, which had it beside the architecture."""
    k: Any
    hook_name: Any
    hook_name_out: Any
    """Of transcoders."""
    half: bool
    """Whether its weights are float16."""
    head: Any
    """The head that it reads alone; None for whole rows."""
    array: Callable[[str], Any]
    """A weight by its name; None if it has no such weight."""

    def weight(self, name: str, *axes: str) -> Float32Array:
        array = self.array(name)
        if array is None:
            raise _refused(f"it has no {name}")
        return as_array(array, name, axes)

    def encoder(self) -> tuple[Any, Any]:
        """What rows are multiplied by, float64 [rows, features], and what is then added,
        [features]; of a gated one that of its magnitudes."""
        weights = self.weight("W_enc", "rows", "features").astype(np.float64)
        if self.architecture != "gated":
            return weights, self.weight("b_enc", "features").astype(np.float64)
        scales = np.exp(self.weight("r_mag", "features").astype(np.float64))
        return weights * scales, self.weight("b_mag", "features").astype(np.float64)

    def thresholds(self) -> Any:
        """What its features exceed. A gate, x W_enc + b_gate > 0, is open where the magnitude
        before the relu, exp(r_mag) x W_enc + b_mag, is above b_mag - exp(r_mag) b_gate
        (Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders",
        2024)."""
        if self.architecture == "gated":
            scales = np.exp(self.weight("r_mag", "features").astype(np.float64))
            found: Any = self.weight("b_mag", "features") - scales * self.weight(
                "b_gate", "features"
            )
        else:
            found = self.weight("threshold", "features")
        # Of what is above its threshold SAELens takes the relu, and a JumpReLU the value itself.
        return np.maximum(found, 0)

    def stored(self, array: Any) -> Any:
        """As it is to travel: float16 where nothing is lost by it, else float32."""
        if self.half:
            halved = array.astype(np.float16)
            if (halved == array).all():
                return halved
        return array.astype(np.float32)


def _opened(sae: Sae) -> _Opened:
    if isinstance(sae, str | PathLike):
        folder = Path(fspath(sae))
        config = json.loads((folder / "cfg.json").read_text())
        get = config.get
        weights: dict[str, Any] = {}

        def array(name: str) -> Any:
            if not weights:
                weights.update(float_tensors(folder / "sae_weights.safetensors"))
            return weights.get(name)

    else:
        config = getattr(sae, "cfg", None)
        if config is None or not hasattr(sae, "W_enc"):
            raise InvalidRequest(
                f"what is given is {described(sae)}; give an SAE of SAELens, or the folder that "
                "its save_model wrote",
                reason="FIELD_INVALID",
            )

        def get(name: str, default: Any = None) -> Any:
            return getattr(config, name, default)

        def array(name: str) -> Any:
            return getattr(sae, name, None)

    metadata: Any = get("metadata", None) or {}

    def inner(name: str) -> Any:
        is_mapping = isinstance(metadata, Mapping)
        return metadata.get(name) if is_mapping else getattr(metadata, name, None)

    def told(*names: str) -> Any:
        """Of the metadata, or of the configuration itself, as before SAELens 6.0."""
        for name in names:
            for value in (inner(name), get(name, None)):
                if value is not None:
                    return value
        return None

    activation = get("activation_fn", None) or get("activation_fn_str", None) or "relu"
    k = get("k", None)
    architecture: Any = get("architecture", None) or "standard"
    if callable(architecture):  # Of a configuration since SAELens 6.0.
        architecture = architecture()
    if activation == "topk" and architecture in ("standard", "topk"):
        architecture, k = "topk", (get("activation_fn_kwargs", None) or {}).get("k", k)
    normalization = get("normalize_activations", None) or "none"
    if normalization is True:  # As SAELens once wrote it.
        normalization = "expected_average_only_in"
    return _Opened(
        architecture=architecture,
        apply_b_dec_to_input=bool(get("apply_b_dec_to_input", True)),
        normalization=normalization,
        rescale_acts_by_decoder_norm=bool(get("rescale_acts_by_decoder_norm", False)),
        activation_fn=activation,
        k=k,
        hook_name=told("hook_name", "hook_point"),
        hook_name_out=told("hook_name_out", "hook_point_out"),
        half=str(get("dtype", None)).rpartition(".")[2] == "float16",
        head=told("hook_head_index", "hook_point_head_index"),
        array=array,
    )


def _check_expressible(opened: _Opened, input_scale: float | None) -> None:
    if opened.architecture not in (*_RELU, *_JUMP_RELU, "gated", "topk"):
        known = _NO_ARCHITECTURE.get(opened.architecture, "this client does not know its encoder")
        raise _refused(f"of the architecture {opened.architecture!r}: {known}")
    if opened.activation_fn not in ("relu", "topk"):
        raise _refused(f"its activation is {opened.activation_fn!r}, and not relu or topk")
    if opened.activation_fn == "topk" and opened.architecture != "topk":
        raise _refused(
            f"of the architecture {opened.architecture!r} with the activation 'topk': a projection "
            "has one of the two"
        )
    scaled = opened.normalization == "expected_average_only_in" and input_scale is not None
    if opened.normalization != "none" and not scaled:
        known = _NO_NORMALIZATION.get(opened.normalization, "this client does not know it")
        raise _refused(f"its rows are normalized by {opened.normalization!r}: {known}")
    if opened.head is not None:
        raise _refused(f"it reads head {opened.head} alone, and a projection reads whole rows")


def _activation(opened: _Opened) -> Activation:
    if opened.architecture in _RELU:
        return "relu"
    if opened.architecture == "topk":
        return TopK(opened.k)
    return JumpReLU(opened.thresholds())


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"this SAE cannot be read as a projection: {why}", reason="FIELD_INVALID", path=("sae",)
    )
