"""Weights: what the model of the server computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from actserve._async.base import AsyncBase
from actserve._checks import several
from actserve.tensors import Float32Array
from actserve.tokens import TokenLike
from actserve.weights import HeadMatrices, TokenMatrix


class AsyncWeights(AsyncBase):
    """Rows of tokens and matrices of heads."""

    async def token_rows(
        self,
        matrix: TokenMatrix,
        token_ids: TokenLike | Sequence[TokenLike] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """Rows of the embedding or of the unembedding, float32 [tokens, width].

        - `matrix`: "embedding", which is without any scale that the model gives it, or
          "unembedding", which is without the gain of the final norm; where the model ties them,
          they are equal.
        - `token_ids`: tokens, by id or text such as `" Paris"`; at most 4096 a call.

            paris, rome = client.token_rows("unembedding", [" Paris", " Rome"])
        """
        asked = await self._resolved({"tokens": several(token_ids)}, timeout)
        job = self._connection.weight_jobs.token_rows(matrix, asked["tokens"])
        return await self._transport.run(job, timeout)

    async def head_matrices(
        self,
        layer: int,
        heads: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer],
        *,
        timeout: float | None = None,
    ) -> list[HeadMatrices]:
        """What some heads of a layer compute with, in the order of `heads`: W_Q, W_K, W_V and W_O,
        and as `qk` and `ov` what goes together. `layer` may be negative."""
        job = self._connection.weight_jobs.head_matrices(layer, heads)
        return await self._transport.run(job, timeout)
