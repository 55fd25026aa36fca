"""What is told of a model's weights, and what logits are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class TokenMatrix(StrEnum):
    """A matrix with one row, as wide as the residual stream, for each token."""

    EMBEDDING = "embedding"
    UNEMBEDDING = "unembedding"


class HeadMatrix(StrEnum):
    """A factor of what one attention head computes, for rows that are multiplied from the left:
    q = x W_Q, k = x W_K, v = x W_V, and z W_O is what the head writes."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUTPUT = "output"


NOT_READ = "this engine does not give its weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInfo:
    """Why parts of a model's weights are not served, and what is computed with them; each is empty
    where it is served."""

    tokens_unserved: str = NOT_READ
    """Rows of `TokenMatrix`."""
    heads_unserved: str = NOT_READ
    """Every `HeadMatrix`."""
    attribution_unserved: str = NOT_READ
    """`LogitDirections`."""
    head_attribution_unserved: str = NOT_READ
    """`LogitDirections.heads`."""


NO_WEIGHTS = WeightsInfo()
ALL_WEIGHTS = WeightsInfo(
    tokens_unserved="", heads_unserved="", attribution_unserved="", head_attribution_unserved=""
)


@dataclass(frozen=True, slots=True)
class LogitTarget:
    """The logit of one token, or the difference between the logits of two."""

    token_id: int
    minus_token_id: int | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        if self.minus_token_id is None:
            return (self.token_id,)
        return (self.token_id, self.minus_token_id)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LogitDirections:
    """How some targets are made of the residual stream, with the scale of the final norm frozen:

        target = scale * (the last residual . direction) + constant

    so each part of that residual adds scale times its own product. The gain of the norm, and the
    mean that a LayerNorm takes away, are in the directions (Elhage et al., "A Mathematical
    Framework for Transformer Circuits", 2021).
    """

    stream: np.ndarray
    """float32 [targets, width]."""
    heads: Mapping[int, np.ndarray]
    """By layer, the same for rows of `z`: seen through each head's part of the output projection,
    float32 [targets, heads, head width]."""
    constants: np.ndarray
    """What the bias of the norm, if it has one, adds to each target: float32 [targets]."""
    centered: bool
    """Whether the norm takes the mean away before it scales, as a LayerNorm does."""
    epsilon: float
    """What the norm adds to the mean square."""
    soft_cap: float | None = None
    """What the model's own logits do not exceed; targets are of those before it."""

    def scales(self, last: np.ndarray) -> np.ndarray:
        """What the norm multiplies rows of the last residual with before its gain, float32
        [rows]."""
        rows = last.astype(np.float64)
        if self.centered:
            rows -= rows.mean(axis=1, keepdims=True)
        return (1 / np.sqrt(np.mean(rows * rows, axis=1) + self.epsilon)).astype(np.float32)

    def logits(self, last: np.ndarray) -> np.ndarray:
        """The targets that rows of the last residual make, each of one token, as the model says
        them: float32 [rows, targets]."""
        found = self.scales(last)[:, None] * (last @ self.stream.T) + self.constants
        return found if self.soft_cap is None else np.tanh(found / self.soft_cap) * self.soft_cap
