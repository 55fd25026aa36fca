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

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.readouts.attention_patterns import pattern_blocks, top_k


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
    keys = np.arange(len(k))
    # How far before the query: the previous token, its own, and what was asked for.
    distances = (1, 0, *offsets)
    at = np.zeros((rule.heads, len(distances)))
    induction, entropy, distance = np.zeros((3, rule.heads))
    received = np.zeros((rule.heads, len(k)))
    for head in range(rule.heads):
        for rows, block in pattern_blocks(rule, q, k, head, q_positions):
            weights, positions = block.astype(np.float64), q_positions[rows]
            for column, far in enumerate(distances):
                having = positions >= far
                at[head, column] += weights[having, positions[having] - far].sum()
            induction[head] += weights[_following_earlier(token_ids, positions)].sum()
            logs = np.log(weights, out=np.zeros_like(weights), where=weights != 0)
            entropy[head] -= np.vdot(weights, logs)
            distance[head] += positions @ weights.sum(axis=1)
            received[head] += weights.sum(axis=0)
    distance -= received @ keys

    counts = [int((q_positions >= far).sum()) for far in distances]
    repeated = int((_first_occurrences(token_ids)[q_positions] < q_positions).sum())
    top = top_k(_mean(received, len(q)), top_keys).padded(top_keys)
    return AttentionSummary(
        queries=len(q),
        previous_token_queries=counts[0],
        induction_queries=repeated,
        offset_queries=tuple(counts[2:]),
        previous_token=_mean(at[:, 0], counts[0]),
        current_token=_mean(at[:, 1], counts[1]),
        first_token=_mean(received[:, :1].sum(axis=1), len(q)),
        induction=_mean(induction, repeated),
        entropy=_mean(entropy, len(q)),
        distance=_mean(distance, len(q)),
        at_offsets=_mean(at[:, 2:], np.array(counts[2:])),
        top_keys=top.keys,
        top_key_means=top.weights,
    )


def _following_earlier(token_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which keys follow an occurrence of the token of each query, bool [queries, T]. Those that
    follow a later one are among them, but no query gives weight to them."""
    found = np.zeros((len(positions), len(token_ids)), bool)
    np.equal(token_ids[positions, np.newaxis], token_ids[:-1], out=found[:, 1:])
    return found


def _first_occurrences(token_ids: np.ndarray) -> np.ndarray:
    """For each token the first position that has the same one."""
    _, first, inverse = np.unique(token_ids, return_index=True, return_inverse=True)
    return first[inverse]


def _mean(sums: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (sums / count).astype(np.float32)
