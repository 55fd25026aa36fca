"""How a layer attends, as far as it takes to compute its pattern from queries and keys."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionRule:
    """How one layer attends.

    With s = scale q . k, or soft_cap tanh(s / soft_cap), query i gives key j the weight
    exp(s_ij) / (sum over visible keys of exp(s) + exp(sink)).
    """

    heads: int
    key_value_heads: int
    """Divides `heads`; consecutive heads share one, head h has h // (heads // key_value_heads)."""
    head_dim: int
    scale: float
    sliding_window: int | None = None
    """Keys a query sees, itself included, at least one: query i sees j with i - window < j <= i, as
    in transformers and vLLM. Every j <= i if None."""
    soft_cap: float | None = None
    """Bounds the scores, as in Gemma 2; positive. None leaves them as they are."""
    sinks: np.ndarray | None = None
    """A logit for each head that takes part in its softmax but belongs to no key, as in gpt-oss;
    float32 [heads]. The weights of a query then sum to less than one."""
