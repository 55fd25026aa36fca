"""Attention: how much each token attends to each token before it, recomputed on the server, as
patterns or as a few numbers a head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import INT32, UINT32, distinct, integer, several
from actserve.errors import InvalidRequest
from actserve.positions import Positions, check_positions, positions_to_proto
from actserve.tensors import Float32Array
from actserve.v1 import readout_pb2 as pb

ALL_HEADS: Final = "all"

Heads: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] | Literal["all"]
"""One query head, several, or all of a layer."""

_MAX_OFFSETS = 64
_MAX_TOP_KEYS = 64


@dataclass(frozen=True, eq=False)
class Attention:
    """Asks for the attention patterns of some heads of a layer.

    - `layer`: zero-based; negative values count from the last.
    - `heads`: one query head, several, or "all".
    - `queries`: the positions that attend; see `Positions`.
    - `top_k`: how many of the largest weights of each query to send, with the positions of their
      keys; the whole row by default.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    layer: int
    heads: Heads = ALL_HEADS
    queries: Positions = "all"
    top_k: int | None = None

    def __post_init__(self) -> None:
        integer(self.layer, "a layer", INT32, "LAYER_OUT_OF_RANGE")
        heads: Heads = ALL_HEADS
        if not isinstance(self.heads, str) or self.heads != ALL_HEADS:
            heads = distinct(self.heads, "a head", UINT32, "HEAD_OUT_OF_RANGE")
        if not heads:
            raise InvalidRequest(
                "heads is empty; name at least one, as in heads=[3]", reason="FIELD_REQUIRED"
            )
        check_positions(self.queries)
        if self.top_k is not None:
            integer(self.top_k, "a number of weights", range(1, 2**32), "FIELD_INVALID")
        object.__setattr__(self, "heads", heads)

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """The layer and head of each pattern."""
        return tuple((self.layer, head) for head in self._heads)

    @property
    def _heads(self) -> Sequence[int]:
        if isinstance(self.heads, str):
            raise InvalidRequest(
                "all heads are counted where a client makes a call; name them here",
                reason="HEAD_OUT_OF_RANGE",
            )
        return several(self.heads)

    def to_proto(self) -> pb.AttentionReadout:
        """The request as the contract writes it."""
        return pb.AttentionReadout(
            layer=self.layer,
            heads=self._heads,
            queries=positions_to_proto(self.queries),
            top_k=self.top_k,
        )


@dataclass(frozen=True, eq=False)
class AttentionSummary:
    """Asks how every head of some layers attends, in means over queries: for
    `readouts={"heads": AttentionSummary()}`, whose answer is an `AttentionMeans`.

    - `layers`: one or several, zero-based; negative values count from the last. All when empty.
    - `queries`: the positions that attend; see `Positions`.
    - `offsets`: how far before its query is each position to report the attention to, at most 64.
    - `top_keys`: how many of the keys that receive most attention to report, at most 64.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    layers: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] = ()
    queries: Positions = "all"
    offsets: SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer] = ()
    top_keys: int = 0

    def __post_init__(self) -> None:
        layers = distinct(self.layers, "a layer", INT32, "LAYER_OUT_OF_RANGE")
        offsets = distinct(self.offsets, "an offset", UINT32, "FIELD_INVALID")
        if len(offsets) > _MAX_OFFSETS:
            raise InvalidRequest(
                f"{len(offsets)} offsets; give at most {_MAX_OFFSETS}", reason="FIELD_INVALID"
            )
        check_positions(self.queries)
        integer(self.top_keys, "a number of keys", range(_MAX_TOP_KEYS + 1), "FIELD_INVALID")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "offsets", offsets)

    def to_proto(self) -> pb.AttentionSummaryReadout:
        """The request as the contract writes it."""
        return pb.AttentionSummaryReadout(
            layers=several(self.layers),
            queries=positions_to_proto(self.queries),
            offsets=several(self.offsets),
            top_keys=self.top_keys,
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionMeans:
    """How every head of some layers attends, in means over the selected queries of one sequence.

    w(q, k) is the weight that query q gives to key k, as an `AttentionPattern` has it: zero for a
    key out of the layer's window, which counts as any other weight, and with attention sinks in sum
    less than one, for which nothing is scaled up.

    Each mean is over those queries for which it means anything; how many they are is here as well,
    so the mean over several sequences is that of their means weighted by these numbers. A mean over
    no query is NaN. What has no count of its own is over all `queries`.

    The scores are those of Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021
    and Olsson et al., "In-context Learning and Induction Heads", 2022.
    """

    layers: NDArray[np.int64]
    """Zero-based, in the order asked for. Shape [layers], and row i of every mean is layers[i]."""
    queries: int
    """All selected queries."""
    previous_token_queries: int
    """Those that have a previous token: all but position zero."""
    induction_queries: int
    """Those whose token is at an earlier position as well."""
    offset_queries: NDArray[np.int64]
    """For each of the offsets, those at that position or later. Shape [offsets]."""
    previous_token: Float32Array
    """w(q, q - 1), over `previous_token_queries`. Shape [layers, heads]."""
    current_token: Float32Array
    """w(q, q). Shape [layers, heads]."""
    first_token: Float32Array
    """w(q, 0). Shape [layers, heads]."""
    induction: Float32Array
    """The sum of w(q, k) over every k that follows an earlier occurrence of the token of q, over
    `induction_queries`. Shape [layers, heads]."""
    entropy: Float32Array
    """The sum of -w ln w, in nats. Shape [layers, heads]."""
    distance: Float32Array
    """The sum of w(q, k) (q - k), in tokens. Shape [layers, heads]."""
    at_offsets: Float32Array
    """w(q, q - offset), over `offset_queries`. Shape [layers, heads, offsets]."""
    top_keys: NDArray[np.int64]
    """The positions of the keys with the largest `top_key_means`, largest first; -1 where fewer
    keys receive any attention. Shape [layers, heads, top_keys]."""
    top_key_means: Float32Array
    """Their w(q, k). Shape [layers, heads, top_keys]."""
