"""Attention: how much each token attends to each token before it, recomputed on the server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from actserve._checks import INT32, UINT32, distinct, integer, several
from actserve.errors import InvalidRequest
from actserve.positions import Positions, positions_to_proto
from actserve.tensors import Float32Array
from actserve.v1 import readout_pb2 as pb


@dataclass(frozen=True, eq=False)
class Attention:
    """Asks for the attention patterns of some heads of a layer.

    - `layer`: zero-based; negative values count from the last.
    - `heads`: one query head, or several.
    - `queries`: the positions that attend; see `Positions`.
    - `top_k`: how many of the largest weights of each query to send, with the positions of their
      keys; the whole row by default.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    layer: int
    heads: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer]
    queries: Positions = "all"
    top_k: int | None = None

    def __post_init__(self) -> None:
        integer(self.layer, "a layer", INT32, "LAYER_OUT_OF_RANGE")
        heads = distinct(self.heads, "a head", UINT32, "HEAD_OUT_OF_RANGE")
        if not heads:
            raise InvalidRequest(
                "heads is empty; name at least one, as in heads=[3]", reason="FIELD_REQUIRED"
            )
        positions_to_proto(self.queries)
        if self.top_k is not None:
            integer(self.top_k, "a number of weights", range(1, 2**32), "FIELD_INVALID")
        object.__setattr__(self, "heads", heads)

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """The layer and head of each pattern."""
        return tuple((self.layer, head) for head in several(self.heads))

    def to_proto(self) -> pb.AttentionReadout:
        """The request as the contract writes it."""
        return pb.AttentionReadout(
            layer=self.layer,
            heads=several(self.heads),
            queries=positions_to_proto(self.queries),
            top_k=self.top_k,
        )


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPattern:
    """How some queries of one head attend. Row i is the query at `queries[i]`."""

    layer: int
    """As it was asked for."""
    head: int
    queries: NDArray[np.int64]
    """Positions, ascending. Shape [queries]."""
    weights: Float32Array
    """Each row sums to one, or to less where the model has attention sinks. Shape [queries, tokens
    run], key j in column j; with `top_k` [queries, top_k], largest first."""
    keys: NDArray[np.int64] | None = None
    """With `top_k` the position of each weight's key, -1 where a query has fewer keys; else None.
    Shape [queries, top_k]."""
