"""What is told of the patterns of a layer in place of them.

This is the definition. The worker makes the same beside the model, where queries and keys are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.attention_patterns import SparsePattern, pattern_blocks, top_k
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.positions import Spans

OTHERS = 7
"""Numbers of `QueryMeasures` beside those at distances."""


@dataclass(frozen=True, slots=True)
class QueryMeasures:
    """How every head of a layer attends from a query, in a few numbers.

    In place of a row of `q` comes float32 [`width`], head by head: the weight of the key so far
    before the query for each of `distances`, zero where there is none, and then, of this query
    alone, `OTHERS`: `first`, `induction`, `entropy` and `distance` as `AttentionSummary` has them,
    and `distance_variance`, `duplicate` and `beyond_first` as `HeadMeans` has them.
    """

    heads: int
    """Of the layer."""
    offsets: tuple[int, ...] = ()

    @property
    def distances(self) -> tuple[int, ...]:
        """To the token before, to the query's own, and to what was asked for."""
        return (1, 0, *self.offsets)

    @property
    def numbers(self) -> int:
        """Of each head."""
        return len(self.distances) + OTHERS

    @property
    def width(self) -> int:
        return self.heads * self.numbers

    def of_head(
        self, weights: np.ndarray, positions: np.ndarray, token_ids: np.ndarray
    ) -> np.ndarray:
        """Of rows of a pattern, float64 [queries, T], with the positions of their queries and the
        token of each key, int64 [queries] and [T]: float64 [queries, `numbers`]."""
        measured = np.zeros((len(weights), self.numbers))
        for column, far in enumerate(self.distances):
            having = np.flatnonzero(positions >= far)
            measured[having, column] = weights[having, positions[having] - far]
        first, induction, entropy, distance, variance, duplicate, beyond_first = measured[
            :, len(self.distances) :
        ].T
        first[:] = weights[:, 0]
        following = _following_earlier(token_ids, positions)
        induction[:] = np.einsum("qk,qk->q", weights, following)
        # One array of the size of the weights after the other.
        each = np.log(weights, out=np.zeros_like(weights), where=weights != 0)
        entropy[:] = -np.einsum("qk,qk->q", weights, each)
        np.subtract(positions[:, np.newaxis], np.arange(weights.shape[1]), out=each)
        same = (token_ids[positions, np.newaxis] == token_ids) & (each > 0)
        duplicate[:] = np.einsum("qk,qk->q", weights, same)
        distance[:] = np.einsum("qk,qk->q", weights, each)
        each -= distance[:, np.newaxis]
        variance[:] = np.einsum("qk,qk,qk->q", weights, each, each)
        beyond_first[:] = weights[:, 1:].sum(axis=1)
        return measured

    def beyond_first(self, measured: np.ndarray) -> np.ndarray:
        """Of numbers [..., `numbers`] what is given to keys other than position zero."""
        return measured[..., -1]

    def apply(
        self,
        rule: AttentionRule,
        q: np.ndarray,
        k: np.ndarray,
        positions: np.ndarray,
        token_ids: np.ndarray,
    ) -> np.ndarray:
        """Of queries and keys as `pattern` takes them: float32 [queries, `width`]."""
        measured = np.empty((len(q), self.heads, self.numbers), np.float32)
        for head in range(self.heads):
            for rows, weights in pattern_blocks(rule, q, k, head, positions):
                values = weights.astype(np.float64)
                measured[rows, head] = self.of_head(values, positions[rows], token_ids)
        return measured.reshape(len(q), -1)


@dataclass(frozen=True, slots=True)
class LargestWeights:
    """The largest weights of some heads of a layer from a query, and their keys.

    In place of a row of `q` comes float32 [`width`]: of each head in turn the keys and then the
    weights of a row of `SparsePattern`, see `split`.
    """

    heads: tuple[int, ...]
    count: int
    """Of the weights of a head."""

    @property
    def width(self) -> int:
        return len(self.heads) * 2 * self.count

    def apply(
        self,
        rule: AttentionRule,
        q: np.ndarray,
        k: np.ndarray,
        positions: np.ndarray,
        token_ids: np.ndarray,
    ) -> np.ndarray:
        """Of queries and keys as `pattern` takes them: float32 [queries, `width`]."""
        found = np.empty((len(q), len(self.heads), 2, self.count), np.float32)
        for index, head in enumerate(self.heads):
            for rows, weights in pattern_blocks(rule, q, k, head, positions):
                largest = top_k(weights, self.count).padded(self.count)
                found[rows, index, 0], found[rows, index, 1] = largest.keys, largest.weights
        return found.reshape(len(q), -1)

    def split(self, rows: np.ndarray) -> Iterator[SparsePattern]:
        """Of rows as they come, the part of each head."""
        parts = rows.reshape(len(rows), len(self.heads), 2, self.count)
        for index in range(len(self.heads)):
            # Exact: a float32 holds every integer up to 2^24.
            yield SparsePattern(parts[:, index, 0].astype(np.int64), parts[:, index, 1])


@dataclass(frozen=True, slots=True)
class ReceivedWeights:
    """What the keys of a layer receive from some queries of the prompt together.

    A capture of it selects every position up to the last of the queries, and in place of a row of
    `q` comes float32 [`width`]: what every head gives to the key there, summed over the queries.
    All come when the last query was computed.
    """

    heads: int
    """Of the layer."""
    queries: Spans
    """Of the prompt, at least one."""

    @property
    def end(self) -> int:
        """Just behind the last query."""
        return self.queries.ranges[-1][1]

    @property
    def width(self) -> int:
        return self.heads

    def apply(self, rule: AttentionRule, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Of queries and keys at every position up to the last of the queries, as `pattern` takes
        them: float32 [T, `width`]."""
        received = np.zeros((len(k), self.heads))
        positions = self.queries.within(0, len(k))
        for head in range(self.heads):
            for _, weights in pattern_blocks(rule, q[positions], k, head, positions):
                received[:, head] += weights.sum(axis=0, dtype=np.float64)
        return received.astype(np.float32)


PatternRows = QueryMeasures | LargestWeights | ReceivedWeights
"""What may come in place of a row of `q`. The first two depend on the queries, keys and tokens up
to the row's own position, and on nothing after it."""


def _following_earlier(token_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which keys follow an occurrence of the token of each query, bool [queries, T]. Those that
    follow a later one are among them, but no query gives weight to them."""
    found = np.zeros((len(positions), len(token_ids)), bool)
    np.equal(token_ids[positions, np.newaxis], token_ids[:-1], out=found[:, 1:])
    return found
