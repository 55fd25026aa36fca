"""Weights: what attention heads compute with, and how it goes together."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from actserve.tensors import Float32Array

TokenMatrix: TypeAlias = Literal["embedding", "unembedding"]
"""A matrix with one row for each token. Where the model ties the two, they are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadMatrices:
    """What one attention head computes with, float32. x is a row of the residual stream after the
    norm before attention. The gain of that norm, biases, rotary embedding and norms of queries and
    keys are not in the matrices (Elhage et al., "A Mathematical Framework for Transformer
    Circuits", 2021)."""

    layer: int
    """Zero-based."""
    head: int
    """The query head."""
    key_value_head: int
    """The key-value head that it reads."""
    query: Float32Array
    """W_Q: q = x W_Q. Shape [width, head width]."""
    key: Float32Array
    """W_K: k = x W_K. Shape [width, head width]."""
    value: Float32Array
    """W_V: v = x W_V. Shape [width, head width]."""
    output: Float32Array
    """W_O: z W_O is what the head writes. Shape [head width, width]."""

    @property
    def qk(self) -> Float32Array:
        """W_Q W_K^T: x_q QK x_k is how much a query looks for a key, but for what is not in the
        matrices. Shape [width, width]."""
        return self.query @ self.key.T

    @property
    def ov(self) -> Float32Array:
        """W_V W_O: x OV is what the head writes of a token that it attends to. Shape [width,
        width]."""
        return self.value @ self.output
