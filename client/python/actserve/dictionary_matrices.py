"""A dictionary as arrays: what is uploaded, and how one of SAELens becomes it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.projections import Activation, JumpReLU, TopK
from actserve.sites import Site, SiteLike, plain_sites
from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import tensor_pb2

Numbers: TypeAlias = NDArray[Any]
"""float32 or float16."""

_STORED = {"f2": tensor_pb2.ELEMENT_TYPE_F16, "f4": tensor_pb2.ELEMENT_TYPE_F32}


@dataclass(frozen=True, eq=False, kw_only=True)
class Dictionary:
    """A dictionary of your own: f = activation(E (x - b_in) + b), y = D f + b_out + S x.

    - `site`: where x is read.
    - `encoder`: E, [features, width]: a direction for each feature.
    - `decoder`: D transposed, [features, width of y]: what each feature writes. Of a transcoder
      that writes at several sites, a list with one for each.
    - `encoder_bias`: b, [features]. `input_bias`: b_in, [width]. `decoder_bias`: b_out, [width of
      y], or a list. `skip`: S, [width of y, width], or a list. Zero where they are None.
    - `activation`: "relu", a `JumpReLU` or a `TopK`; None is the identity.
    - `written_sites`: of a transcoder, where y is written; none for an autoencoder, whose y is x.

    Arrays of float16 travel as they are, all others as float32. Checks what it is given when it is
    made, and raises `InvalidRequest`.
    """

    site: SiteLike
    encoder: ArrayLike
    decoder: ArrayLike | Sequence[ArrayLike]
    encoder_bias: ArrayLike | None = None
    input_bias: ArrayLike | None = None
    decoder_bias: ArrayLike | Sequence[ArrayLike] | None = None
    skip: ArrayLike | Sequence[ArrayLike] | None = None
    activation: Activation | None = "relu"
    written_sites: SiteLike | Iterable[SiteLike] = ()

    def __post_init__(self) -> None:
        written = plain_sites(self.written_sites)
        encoder = _numbers(self.encoder, "encoder", 2)
        features, width = encoder.shape
        put: dict[str, Any] = {
            "site": Site.parse(self.site),
            "written_sites": written,
            "encoder": encoder,
            "encoder_bias": _maybe(self.encoder_bias, "encoder_bias", (features,)),
            "input_bias": _maybe(self.input_bias, "input_bias", (width,)),
        }
        decoders = tuple(
            _numbers(each, "decoder", 2) for each in _of_each(self.decoder, written, "decoder")
        )
        out = tuple(each.shape[1] for each in decoders)
        for each in decoders:
            if len(each) != features or (not written and each.shape[1] != width):
                raise InvalidRequest(
                    f"the decoder has shape {[*each.shape]} and the encoder {[features, width]}; "
                    "both have a row for each feature, and an autoencoder writes what it reads",
                    reason="TENSOR_SIZE_MISMATCH",
                )
        biases, skips = (
            _each_maybe(getattr(self, name), written, name, len(decoders))
            for name in ("decoder_bias", "skip")
        )
        put["decoder"] = decoders
        put["decoder_bias"] = tuple(
            _maybe(each, "decoder_bias", (size,)) for each, size in zip(biases, out, strict=True)
        )
        put["skip"] = tuple(
            _maybe(each, "skip", (size, width)) for each, size in zip(skips, out, strict=True)
        )
        _check_activation(self.activation, features)
        for name, value in put.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def from_saelens(
        sae: "str | PathLike[str] | Any",
        *,
        site: SiteLike | None = None,
        written_sites: SiteLike | Iterable[SiteLike] | None = None,
        input_scale: float | None = None,
    ) -> "Dictionary":
        """An SAE or transcoder of SAELens, as its object or as the folder that `save_model` wrote,
        which needs the extra `files`. Normalizations are folded in; what cannot be is refused with
        the reason, by `InvalidRequest`.

        - `site`, `written_sites`: where it reads and writes, if its metadata does not say.
        - `input_scale`: what its input was multiplied by in training, for those whose
          `normalize_activations` is "expected_average_only_in".

            client.dictionaries.upload("mine", Dictionary.from_saelens("saes/layer-10"))
        """
        from actserve.saelens import dictionary_from_saelens  # Which makes dictionaries.

        return dictionary_from_saelens(
            sae, site=site, written_sites=written_sites, input_scale=input_scale
        )

    def described(self) -> pb.Dictionary:
        """What the contract says of it before it is uploaded."""
        encoder = np.asarray(self.encoder)
        kind = "TRANSCODER" if plain_sites(self.written_sites) else "SPARSE_AUTOENCODER"
        told = pb.Dictionary(
            kind=f"DICTIONARY_KIND_{kind}",
            site=Site.parse(self.site).to_proto(),
            written_sites=[each.to_proto() for each in plain_sites(self.written_sites)],
            features=len(encoder),
        )
        match self.activation:
            case JumpReLU():
                told.jump_relu.SetInParent()
            case TopK(k):
                told.top_k.k = k
            case "relu":
                told.relu.SetInParent()
            case _:
                pass
        return told

    def matrices(self) -> list[tuple[pb.DictionaryMatrix, Numbers]]:
        """Its matrices, in the order in which they are uploaded."""
        several = len(plain_sites(self.written_sites)) > 1
        found: list[tuple[str, int | None, Any]] = [
            ("ENCODER", None, self.encoder),
            ("ENCODER_BIAS", None, self.encoder_bias),
            ("INPUT_BIAS", None, self.input_bias),
        ]
        if isinstance(self.activation, JumpReLU):
            found.append(("THRESHOLDS", None, self.activation.thresholds))
        for role, each in (
            ("DECODER", self.decoder),
            ("DECODER_BIAS", self.decoder_bias),
            ("SKIP", self.skip),
        ):
            parts: Any = each
            found += [(role, at if several else None, part) for at, part in enumerate(parts)]
        return [
            (
                pb.DictionaryMatrix(
                    role=f"MATRIX_ROLE_{role}",
                    site_index=at,
                    element_type=_STORED[array.dtype.str[1:]],
                    shape=array.shape,
                ),
                array,
            )
            for role, at, each in found
            if each is not None
            for array in [np.ascontiguousarray(each)]
        ]


def _numbers(values: Any, name: str, axes: int) -> Numbers:
    """Finite numbers, little-endian, as float16 if they are that and float32 if not."""
    if hasattr(values, "detach"):  # torch
        half = str(values.dtype) == "torch.float16"
        values = values.detach().cpu()
        values = (values if half else values.float()).numpy()
    array = np.asarray(values)
    if array.ndim != axes or array.dtype.kind not in "fiu" or not array.size:
        raise InvalidRequest(
            f"{name} must hold real numbers along {axes} axes, but has shape {[*array.shape]} and "
            f"type {array.dtype}",
            reason="TENSOR_WIDTH_MISMATCH",
            path=(name,),
        )
    with np.errstate(over="ignore"):
        array = array.astype("<f2" if array.dtype == np.float16 else "<f4")
    if not np.isfinite(array).all():
        raise InvalidRequest(
            f"{name} has numbers that are not finite in float32; every one must be",
            reason="TENSOR_NOT_FINITE",
            path=(name,),
        )
    array.flags.writeable = False
    return array


def _maybe(values: Any, name: str, shape: tuple[int, ...]) -> Numbers | None:
    if values is None:
        return None
    array = _numbers(values, name, len(shape))
    if array.shape != shape:
        raise InvalidRequest(
            f"{name} has shape {[*array.shape]}, but the encoder and the decoder call for "
            f"{[*shape]}",
            reason="TENSOR_SIZE_MISMATCH",
            path=(name,),
        )
    return array


def _of_each(values: Any, written: Sequence[Site], name: str) -> Sequence[Any]:
    """One value for each site that is written."""
    several = len(written) > 1 or (isinstance(values, list | tuple) and _is_list_of_arrays(values))
    parts = tuple(values) if several else (values,)
    if len(parts) != max(1, len(written)):
        raise InvalidRequest(
            f"{name} has {len(parts)} arrays, and the dictionary writes at {max(1, len(written))} "
            "sites; give one array for each site",
            reason="FIELD_INVALID",
            path=(name,),
        )
    return parts


def _each_maybe(values: Any, written: Sequence[Site], name: str, count: int) -> Sequence[Any]:
    return (None,) * count if values is None else _of_each(values, written, name)


def _is_list_of_arrays(values: Sequence[Any]) -> bool:
    return all(each is None or getattr(each, "ndim", 0) for each in values)


def _check_activation(activation: Any, features: int) -> None:
    if isinstance(activation, JumpReLU):
        count = len(np.asarray(activation.thresholds))
        if count != features:
            raise InvalidRequest(
                f"there are {count} thresholds for {features} features; give one for each",
                reason="TENSOR_SIZE_MISMATCH",
                path=("activation",),
            )
    elif not (activation is None or isinstance(activation, TopK) or activation == "relu"):
        raise InvalidRequest(
            f"the activation is {described(activation)}; use 'relu', JumpReLU(thresholds), TopK(k) "
            "or None",
            reason="FIELD_INVALID",
            path=("activation",),
        )
