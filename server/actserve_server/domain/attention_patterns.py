"""Attention patterns from captured queries and keys.

The attention kernels of vLLM never hold a pattern, so it is computed again here, by the definition
that transformers' eager attention follows: float32 scores, and a softmax that subtracts the
largest one first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.blocks import blocks
from actserve_server.domain.ranking import largest

NO_KEY = -1
"""Stands for a key in a row of a `SparsePattern` that has fewer than were asked for."""

_MAX = np.finfo(np.float32).max


@dataclass(frozen=True, slots=True, eq=False)
class SparsePattern:
    """The largest weights of each query, largest first, with the positions of their keys.

    `keys` is int64 and `weights` float32, both [queries, k]. A key of weight zero is never listed:
    a row with fewer than k others ends in `NO_KEY` with weight zero.
    """

    keys: np.ndarray
    weights: np.ndarray

    def padded(self, k: int) -> "SparsePattern":
        """The same with `k` keys in each row, where a sequence may have fewer."""
        missing = ((0, 0), (0, k - self.keys.shape[1]))
        return SparsePattern(
            np.pad(self.keys, missing, constant_values=NO_KEY), np.pad(self.weights, missing)
        )


def pattern(
    rule: AttentionRule,
    q: np.ndarray,
    k: np.ndarray,
    head: int,
    q_positions: np.ndarray | None = None,
) -> np.ndarray:
    """The pattern of one head: the weight of every key for each query, float32 [queries, T].

    `q` is float32 [queries, heads * head_dim] and `k` float32 [T, key_value_heads * head_dim], both
    as attention uses them (after rotary embedding and any norm, before scaling). `k` has the
    positions 0 to T - 1; `q_positions`, int64 [queries], says which ones `q` has, in any order, and
    None that it has the same. Weights of keys that a query does not see are zero.

    An infinite score counts as the largest finite one, so weights are NaN only for a query whose
    product with a key that it sees is NaN itself. Raises `ValueError` for shapes, heads or
    positions that do not fit.
    """
    weights = np.empty((len(q), len(k)), np.float32)
    for rows, block in pattern_blocks(rule, q, k, head, q_positions):
        weights[rows] = block
    return weights


def pattern_blocks(
    rule: AttentionRule,
    q: np.ndarray,
    k: np.ndarray,
    head: int,
    q_positions: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of `pattern` in order, some at a time, with where in `q` they belong.

    For what need not hold the whole pattern, such as `top_k`.
    """
    positions = np.arange(len(q)) if q_positions is None else q_positions
    _check(rule, q, k, head, positions)
    queries = _part(q, head, rule.head_dim)
    keys = _part(k, head // (rule.heads // rule.key_value_heads), rule.head_dim)
    sink = None if rule.sinks is None else rule.sinks[head]
    for rows in blocks(len(q), len(k)):
        yield rows, _weights(rule, queries[rows], keys, positions[rows], sink)


def top_k(weights: np.ndarray, k: int) -> SparsePattern:
    """The `k` largest weights of each query of a pattern, float32 [queries, T].

    The result is [queries, min(k, T)]. Of equal weights the earlier key comes first.
    """
    keys, top = largest(weights, k)
    keys[top == 0] = NO_KEY
    return SparsePattern(keys, top)


def _weights(
    rule: AttentionRule,
    queries: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    sink: np.float32 | None,
) -> np.ndarray:
    window = len(keys) if rule.sliding_window is None else rule.sliding_window
    # No query of the block sees a key outside of these.
    low, high = max(0, positions.min() - window + 1), positions.max() + 1
    weights = np.zeros((len(queries), len(keys)), np.float32)
    scores = weights[:, low:high]
    with np.errstate(over="ignore", invalid="ignore"):
        np.matmul(queries, keys[low:high].T, out=scores)
        scores *= rule.scale
        if rule.soft_cap is not None:
            scores /= rule.soft_cap
            np.tanh(scores, out=scores)
            scores *= rule.soft_cap
        np.clip(scores, -_MAX, _MAX, out=scores)
        distance = positions[:, np.newaxis] - np.arange(low, high)
        scores[(distance < 0) | (distance >= window)] = -np.inf

        peak = scores.max(axis=1, keepdims=True)
        scores -= peak
        np.exp(scores, out=scores)
        total = scores.sum(axis=1, keepdims=True)
        if sink is not None:
            # Infinite beside a sink that is far above every score, which leaves no weight to keys.
            total += np.exp(sink - peak)
        scores /= total
    return weights


def _part(rows: np.ndarray, head: int, head_dim: int) -> np.ndarray:
    return rows[:, head * head_dim : (head + 1) * head_dim]


def _check(
    rule: AttentionRule, q: np.ndarray, k: np.ndarray, head: int, positions: np.ndarray
) -> None:
    # numpy would take all of these, and answer with weights that mean nothing.
    if not 0 <= head < rule.heads:
        raise ValueError(f"head {head} is out of range; give one from 0 to {rule.heads - 1}")
    for name, rows, heads in (("q", q, rule.heads), ("k", k, rule.key_value_heads)):
        if rows.shape[1] != heads * rule.head_dim:
            raise ValueError(
                f"{name} is {rows.shape[1]} wide; {heads} heads of {rule.head_dim} need "
                f"{heads * rule.head_dim}"
            )
    if len(positions) != len(q):
        raise ValueError(f"{len(q)} rows of q have {len(positions)} positions; give one a row")
    if len(q) and not 0 <= positions.min() <= positions.max() < len(k):
        raise ValueError(
            f"queries at {positions.min()} to {positions.max()} need every key up to theirs, but k "
            f"has the positions 0 to {len(k) - 1}; capture it at all positions"
        )
