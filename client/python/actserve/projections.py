"""Projections: rows read along given directions on the server, which sends the components alone.

This is what a linear probe does, and the encoder of a sparse autoencoder (SAE), which may also be
one that the server has by name. In the formulas x is one row of a site and y one component of it
for each direction.
"""

from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actserve._checks import described, integer
from actserve._names import Named, named
from actserve.dictionaries import DICTIONARIES, StoredDictionary, whole_name
from actserve.errors import InvalidRequest
from actserve.kept import KeptRows
from actserve.sources import Matrix, checked_directions, matrix_to_proto, vector_to_proto
from actserve.tensors import Float32Array, as_array
from actserve.v1 import readout_pb2 as pb

_COUNT = range(1, 2**32)


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """y where y is above its threshold, else 0 (Rajamanoharan et al., "Jumping Ahead", 2024).

    `thresholds` have shape [directions].
    """

    thresholds: ArrayLike

    def __post_init__(self) -> None:
        thresholds = as_array(self.thresholds, "thresholds", ("directions",))
        object.__setattr__(self, "thresholds", thresholds)


@dataclass(frozen=True)
class TopK:
    """max(y, 0) for the `k` largest components of a row, else 0 (Gao et al., "Scaling and
    evaluating sparse autoencoders", 2024)."""

    k: int

    def __post_init__(self) -> None:
        integer(self.k, "a number of components", _COUNT, "FIELD_INVALID")


Activation: TypeAlias = Literal["relu"] | JumpReLU | TopK
"""What becomes of the components; "relu" is max(y, 0)."""


@dataclass(frozen=True, eq=False)
class Projection:
    """y = activation(D x + b) in place of each row x, computed in float32.

    - `directions` D have shape [directions, width], or [width] for one, or are `KeptRows`; every
      site captured has this width.
    - `bias` b has shape [directions]; zero by default. An encoder that subtracts p from its input
      has the bias b - D p.
    - `activation`: "relu", a `JumpReLU` or a `TopK`; none by default.
    - `send_top`: how many of the largest components of each row to send, with their indices; all
      of them, without indices, by default.
    - `dictionary`: a dictionary that the server has, by its id or as `client.dictionaries` returned
      it: y are then its features, with all its biases and its activation, and the first three
      arguments are left out.
    - `float32`: whether the encoder of a dictionary stays as it is. Else the server may round it to
      the model's element type, which is faster; sums are float32 either way.

    Checks and copies what it is given when it is made, and raises `InvalidRequest`.
    """

    directions: Matrix | None = None
    bias: ArrayLike | None = None
    activation: Activation | None = None
    send_top: int | None = None
    dictionary: "str | Named | StoredDictionary | None" = None
    float32: bool = False

    def __post_init__(self) -> None:
        if self.send_top is not None:
            integer(self.send_top, "a number of components to send", _COUNT, "FIELD_INVALID")
        if self.dictionary is not None:
            self._check_dictionary_alone()
            object.__setattr__(self, "dictionary", named(DICTIONARIES, self.dictionary))
            return
        if self.directions is None:
            raise InvalidRequest(
                "neither directions nor a dictionary are given; give one of the two, as in "
                "Projection(dictionary='smollm2-135m')",
                reason="FIELD_REQUIRED",
            )
        directions = checked_directions(self.directions, "directions")
        count = None if isinstance(directions, KeptRows) else len(np.asarray(directions))
        bias = None if self.bias is None else as_array(self.bias, "bias", ("directions",))
        thresholds = None
        if isinstance(self.activation, JumpReLU):
            thresholds = np.asarray(self.activation.thresholds)
        elif not (
            self.activation is None
            or isinstance(self.activation, TopK)
            or (isinstance(self.activation, str) and self.activation == "relu")
        ):
            raise InvalidRequest(
                f"the activation is {described(self.activation)}; use 'relu', "
                "JumpReLU(thresholds), TopK(k) or None",
                reason="FIELD_INVALID",
            )
        for name, each in (("bias", bias), ("thresholds", thresholds)):
            if each is not None and count not in (None, len(each)):
                raise InvalidRequest(
                    f"{name} has {len(each)} elements for {count} directions; give one for each",
                    reason="TENSOR_SIZE_MISMATCH",
                )
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "bias", bias)

    def _check_dictionary_alone(self) -> None:
        for name in ("directions", "bias", "activation"):
            if getattr(self, name) is not None:
                raise InvalidRequest(
                    f"{name} is given beside a dictionary, which has its own; leave out one of the "
                    "two",
                    reason="FIELD_INVALID",
                    path=(name,),
                )

    @staticmethod
    def from_saelens(
        sae: "str | PathLike[str] | Any",
        *,
        input_scale: float | None = None,
        send_top: int | None = None,
    ) -> "Projection":
        """The encoder of an SAE or transcoder of SAELens: its components are those of
        `sae.encode(rows)`, computed in float32.

        - `sae`: the SAE, of which only attributes are read, or the folder that its `save_model`
          wrote, `cfg.json` and `sae_weights.safetensors`, which needs the extra `files`.
        - `input_scale`: what its input was multiplied by in training, for those whose
          `normalize_activations` is "expected_average_only_in".
        - `send_top`: as in `Projection`; most components of an SAE are zero.

        Standard, gated, JumpReLU and TopK SAEs, and transcoders, are exactly projections, also with
        a TopK that is rescaled by decoder norms, and of hook_z. Raises `InvalidRequest` with the
        reason for those that are not. `saelens_site` says which site an SAE reads.

            site = actserve.saelens_site("saes/layer-10")
            features = Projection.from_saelens("saes/layer-10", send_top=32)
            acts = client.fetch(prompt, site, projection=features)
            acts.sparse[site].indices  # the features that are active, [tokens, 32]
        """
        from actserve.saelens import projection_from_saelens  # Which makes projections.

        return projection_from_saelens(sae, input_scale=input_scale, send_top=send_top)

    @staticmethod
    def from_sklearn(model: Any) -> "Projection":
        """What a fitted model of scikit-learn computes from a row, as far as it is linear.

        - A linear classifier (LogisticRegression, LinearSVC, ...): its decision function, one
          component of two classes or one for each of several.
        - A linear regressor (Ridge, LinearRegression, ...): its prediction, for each target.
        - A PCA or TruncatedSVD, and a StandardScaler: its transform.
        - A pipeline of these: all of it in one projection.

        Only attributes are read, and the components have one order and sign with scikit-learn's.
        Raises `InvalidRequest` with the reason for a model that is not linear, or not fitted.

            probe = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
            scores = client.fetch(prompt, site, projection=Projection.from_sklearn(probe))[site]
        """
        from actserve.scikit_learn import projection_from_sklearn  # Which makes projections.

        return projection_from_sklearn(model)

    @property
    def count(self) -> int | None:
        """Directions; None where only the server knows, which has them."""
        if self.directions is None or isinstance(self.directions, KeptRows):
            return None
        return len(np.asarray(self.directions))

    @property
    def sent(self) -> int | None:
        """Components sent for each row; None where only the server knows."""
        if self.send_top is None or self.count is None:
            return self.count
        return min(self.send_top, self.count)

    def to_proto(self) -> pb.Projection:
        """The projection as the contract writes it."""
        if self.directions is None:
            return pb.Projection(
                dictionary=whole_name(self.dictionary),
                send_top=self.send_top,
                float32=self.float32,
            )
        proto = pb.Projection(
            directions=matrix_to_proto(self.directions),
            bias=None if self.bias is None else vector_to_proto(self.bias),
            send_top=self.send_top,
        )
        match self.activation:
            case JumpReLU(thresholds):
                proto.jump_relu.thresholds.CopyFrom(vector_to_proto(thresholds))
            case TopK(k):
                proto.top_k.k = k
            case "relu":
                proto.relu.SetInParent()
            case _:
                pass
        return proto


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """The largest components of each row, largest first: what `Projection.send_top` asks for."""

    indices: NDArray[np.int64]
    """The direction that each component belongs to. Shape [positions, components sent]."""
    values: Float32Array
    """The components. Shape [positions, components sent]."""
