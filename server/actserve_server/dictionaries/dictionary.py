"""What a dictionary is: f = activation(E (x - b_in) + b) and y = D f + b_out + S x.

x is a row of one site. y is x again (a sparse autoencoder), or a row of what a part of the model
writes at another site or at several (a transcoder). Whatever else was done in training is folded
into the matrices where they are read (`folding.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from actserve_server.domain.blocks import blocks
from actserve_server.domain.projection import Identity, JumpReLU, Projection, ReLU, TopK
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType


class DictionaryKind(StrEnum):
    """What y is."""

    SPARSE_AUTOENCODER = "sparse_autoencoder"
    """x itself (Bricken et al., "Towards Monosemanticity", 2023)."""
    TRANSCODER = "transcoder"
    """What a part of the model makes of x (Dunefsky et al., "Transcoders Find Interpretable LLM
    Feature Circuits", 2024)."""


class ActivationKind(StrEnum):
    """What makes features of z = E (x - b_in) + b, as `domain/projection.py` defines it."""

    IDENTITY = "identity"
    RELU = "relu"
    JUMP_RELU = "jump_relu"
    TOP_K = "top_k"


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryCheck:
    """How well a dictionary reconstructs the rows of a text that comes with the server."""

    tokens: int
    explained: float
    """The part of the variance of y that is explained: 1 - sum |y - y'|^2 / sum |y - mean y|^2."""
    shuffled_explained: float
    """The same where each row is reconstructed from another one's x. A dictionary that reads the
    wrong site, or the wrong way round, is no better than this."""
    active_features: float
    """Features that are not zero, in the mean over tokens (L0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dictionary:
    """A dictionary without its matrices."""

    id: str
    """The last part of its name."""
    kind: DictionaryKind
    site: Site
    """Where x is read."""
    written_sites: tuple[Site, ...] = ()
    """Of transcoders: where y is written. Empty for sparse autoencoders."""
    features: int
    width: int
    """Of x."""
    activation: ActivationKind
    kept: int = 0
    """Of TOP_K, how many features are kept; zero otherwise."""
    size_bytes: int
    """Of its matrices, as they are stored; of a file of the server's, as float32."""
    created_at_us: int
    """Microseconds since 1970 began, UTC."""
    etag: str
    of_server: bool = False
    """Whether the operator has loaded it: then every tenant has it, and none can delete it."""
    check: DictionaryCheck | None = None

    @property
    def targets(self) -> tuple[Site, ...]:
        """The sites that y is of."""
        return self.written_sites or (self.site,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DictionaryMatrices:
    """The numbers of a dictionary: float32, finite, C-contiguous, and none of them changes."""

    encoder: np.ndarray = field(repr=False)
    """E, [features, width]."""
    encoder_bias: np.ndarray = field(repr=False)
    """b, [features]."""
    input_bias: np.ndarray | None = field(default=None, repr=False)
    """b_in, [width]; None for zero."""
    thresholds: np.ndarray | None = field(default=None, repr=False)
    """[features], of JUMP_RELU alone."""
    decoders: tuple[np.ndarray, ...] = field(repr=False)
    """D transposed, [features, width of y], one for each target."""
    decoder_biases: tuple[np.ndarray | None, ...] = field(repr=False)
    """b_out, [width of y]; None for zero."""
    skips: tuple[np.ndarray | None, ...] = field(repr=False)
    """S, [width of y, width]; None for zero."""

    @property
    def every(self) -> tuple[np.ndarray, ...]:
        """All that are there."""
        parts = [self.encoder, self.encoder_bias, self.input_bias, self.thresholds]
        parts += [*self.decoders, *self.decoder_biases, *self.skips]
        return tuple(each for each in parts if each is not None)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.every)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedDictionary:
    """A dictionary with its matrices. It stays with whoever has it, also when it is deleted."""

    about: Dictionary
    matrices: DictionaryMatrices = field(repr=False)
    _rounded: dict[ElementType, Projection] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def projection(self) -> Projection:
        """f as a function of rows, in float32."""
        return self.projection_of(None)

    def projection_in(self, element_type: ElementType) -> Projection:
        """The same with E rounded to an element type, made once."""
        if element_type is ElementType.F32:
            return self.projection
        made = self._rounded.get(element_type)
        if made is None:
            made = self._rounded[element_type] = self.projection_of(None, element_type)
        return made

    def projection_of(
        self, features: Sequence[int] | None, element_type: ElementType = ElementType.F32
    ) -> Projection:
        """The same for some features alone, in this order; all if None. Not for TOP_K, whose
        features depend on each other."""
        of = self.matrices
        chosen = slice(None) if features is None else np.asarray(features, np.int64)
        encoder, bias = of.encoder[chosen], of.encoder_bias[chosen]
        made = Projection(
            encoder, activation=Identity(), lasting=features is None, element_type=element_type
        )
        if of.input_bias is not None:
            # By the encoder as it is multiplied: what rounding adds then grows with x - b_in, not
            # with x.
            bias = (bias - _product(made, of.input_bias)).astype(np.float32)
        match self.about.activation:
            case ActivationKind.IDENTITY:
                activation = Identity()
            case ActivationKind.RELU:
                activation = ReLU()
            case ActivationKind.JUMP_RELU:
                assert of.thresholds is not None
                activation = JumpReLU(of.thresholds[chosen])
            case ActivationKind.TOP_K:
                assert features is None
                activation = TopK(self.about.kept)
        return replace(made, bias=bias, activation=activation)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The features of `rows`, float32 [n, width], as float32 [n, features]."""
        return self.projection.apply(rows)

    def decode(self, features: np.ndarray, rows: np.ndarray, target: int = 0) -> np.ndarray:
        """y of features, float32 [n, features], and of the rows that they were made of, float32
        [n, width]; at one of the targets. Float32 [n, width of y]."""
        of = self.matrices
        made = features @ of.decoders[target]
        if (bias := of.decoder_biases[target]) is not None:
            made += bias
        if (skip := of.skips[target]) is not None:
            made += rows @ skip.T
        return made


def _product(projection: Projection, vector: np.ndarray) -> np.ndarray:
    """Of the directions as they are multiplied, float64. A block of them at a time: a float64 copy
    of a large encoder would be twice its size."""
    return np.concatenate(
        [
            part[block].astype(np.float64) @ vector
            for _, part in projection.parts()
            for block in blocks(*part.shape)
        ]
    )
