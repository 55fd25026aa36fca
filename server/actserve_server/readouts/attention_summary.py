"""How heads attend, in means over queries: the scores by which heads are told apart.

A previous-token head attends to the token before (Elhage et al., "A Mathematical Framework for
Transformer Circuits", 2021). An induction head attends to what followed an earlier occurrence of
the current token (Olsson et al., "In-context Learning and Induction Heads", 2022). The keys counted
for it are those of the induction pattern of TransformerLens' head detector, which divides their
weights by all weights of a text; here the mean is over the queries that have such a key.

A pattern is computed some queries at a time and never held whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.attention_patterns import pattern_blocks, top_k
from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.attention_rules import AttentionRule


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionSummary:
    """Means over some queries of one layer, for every head.

    All arrays of means are float32. A mean over no query is NaN. With attention sinks the weights
    of a query sum to less than one, and are taken as they are.
    """

    queries: int
    previous_token_queries: int
    """Those that have a previous token."""
    induction_queries: int
    """Those whose token is at an earlier position as well."""
    offset_queries: tuple[int, ...]
    """For each offset, those that have a key so far before them."""
    previous_token: np.ndarray
    """The weight of the token before, over `previous_token_queries`; [heads]."""
    current_token: np.ndarray
    """The weight of the query's own token; [heads]."""
    first_token: np.ndarray
    """The weight of position zero; [heads]."""
    induction: np.ndarray
    """The weight of all that follows an earlier occurrence of the query's token, over
    `induction_queries`; [heads]."""
    entropy: np.ndarray
    """The sum of -w ln w, in nats; [heads]."""
    distance: np.ndarray
    """The sum of w times how many tokens the key is before the query; [heads]."""
    at_offsets: np.ndarray
    """The weight of the token so far before, over `offset_queries`; [heads, offsets]."""
    top_keys: np.ndarray
    """Positions of the keys that receive most over all queries, most first; int64 [heads, keys].
    `NO_KEY` where fewer receive anything."""
    top_key_means: np.ndarray
    """What each of them receives; [heads, keys]."""


def summarize(
    rule: AttentionRule,
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    token_ids: np.ndarray,
    *,
    offsets: Sequence[int] = (),
    top_keys: int = 0,
) -> AttentionSummary:
    """How every head attends. `q`, `k` and `q_positions` are as `pattern` takes them, and
    `token_ids`, int64 [T], the token of each key."""
    measures = QueryMeasures(rule.heads, tuple(offsets))
    sums = np.zeros((rule.heads, measures.numbers))
    received = np.zeros((rule.heads, len(k)))
    for head in range(rule.heads):
        for rows, block in pattern_blocks(rule, q, k, head, q_positions):
            weights = block.astype(np.float64)
            sums[head] += measures.of_head(weights, q_positions[rows], token_ids).sum(axis=0)
            received[head] += weights.sum(axis=0)
    return summary_of(measures, sums, received, q_positions, token_ids, top_keys)


def summary_of(
    measures: QueryMeasures,
    sums: np.ndarray,
    received: np.ndarray,
    q_positions: np.ndarray,
    token_ids: np.ndarray,
    top_keys: int = 0,
) -> AttentionSummary:
    """The means, of sums over the queries at these positions: of `measures`, float64 [heads,
    numbers], and of what each key receives, float64 [heads, T]."""
    distances = measures.distances
    at, (first, induction, entropy, distance, *_) = (
        sums[:, : len(distances)],
        sums.T[len(distances) :],
    )
    counts = [int((q_positions >= far).sum()) for far in distances]
    repeated = repeated_queries(q_positions, token_ids)
    queries = len(q_positions)
    top = top_k(_mean(received, queries), top_keys).padded(top_keys)
    return AttentionSummary(
        queries=queries,
        previous_token_queries=counts[0],
        induction_queries=repeated,
        offset_queries=tuple(counts[2:]),
        previous_token=_mean(at[:, 0], counts[0]),
        current_token=_mean(at[:, 1], counts[1]),
        first_token=_mean(first, queries),
        induction=_mean(induction, repeated),
        entropy=_mean(entropy, queries),
        distance=_mean(distance, queries),
        at_offsets=_mean(at[:, 2:], np.array(counts[2:])),
        top_keys=top.keys,
        top_key_means=top.weights,
    )


def repeated_queries(q_positions: np.ndarray, token_ids: np.ndarray) -> int:
    """How many queries have a token that is at an earlier position as well."""
    _, first, inverse = np.unique(token_ids, return_index=True, return_inverse=True)
    return int((first[inverse][q_positions] < q_positions).sum())


def _mean(sums: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (sums / count).astype(np.float32)
