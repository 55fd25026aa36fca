"""Attention patterns equal their definition, and what torch, transformers and vLLM attend with."""

import math
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from actserve_server.domain import blocks
from actserve_server.domain.attention_patterns import (
    NO_KEY,
    AttentionRule,
    pattern,
    pattern_blocks,
    top_k,
)

T, D = 13, 8
FULL = AttentionRule(heads=4, key_value_heads=4, head_dim=D, scale=D**-0.5)
SINKS = np.array([-1, 0, 2, 5], np.float32)
RULES = {
    "full": FULL,
    "grouped": replace(FULL, key_value_heads=2),
    "one key-value head": replace(FULL, key_value_heads=1),
    "scaled": replace(FULL, scale=1.7),
    "window 1": replace(FULL, sliding_window=1),
    "window 2": replace(FULL, sliding_window=2),
    "window 5": replace(FULL, sliding_window=5),
    "window T": replace(FULL, sliding_window=T),
    "window beyond T": replace(FULL, sliding_window=10 * T),
    "soft cap": replace(FULL, soft_cap=0.8),
    "sinks": replace(FULL, sinks=SINKS),
    "everything": replace(FULL, key_value_heads=2, sliding_window=5, soft_cap=0.8, sinks=SINKS),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def _queries_and_keys(rule: AttentionRule, size: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k = (
        (size * rng.standard_normal((T, heads * rule.head_dim))).astype(np.float32)
        for heads in (rule.heads, rule.key_value_heads)
    )
    return q, k


def _definition(
    rule: AttentionRule, q: np.ndarray, k: np.ndarray, head: int, positions: np.ndarray
) -> np.ndarray:
    """Every weight by itself, in float64."""
    group = rule.heads // rule.key_value_heads
    queries = q.reshape(len(q), rule.heads, rule.head_dim)[:, head].astype(np.float64)
    keys = k.reshape(len(k), rule.key_value_heads, rule.head_dim)[:, head // group]
    weights = np.zeros((len(q), len(k)))
    for row, (query, i) in enumerate(zip(queries, positions, strict=True)):
        first = 0 if rule.sliding_window is None else max(0, i - rule.sliding_window + 1)
        exponentials = {}
        for j in range(first, i + 1):
            score = rule.scale * float(query @ keys[j])
            if rule.soft_cap is not None:
                score = rule.soft_cap * math.tanh(score / rule.soft_cap)
            exponentials[j] = math.exp(score)
        total = sum(exponentials.values())
        if rule.sinks is not None:
            total += math.exp(rule.sinks[head])
        for j, value in exponentials.items():
            weights[row, j] = value / total
    return weights


@every_rule
@pytest.mark.parametrize("block_bytes", [1, 3 * 4 * T, 1 << 20])
def test_a_pattern_is_its_definition_at_any_positions_and_in_any_block(
    rule: AttentionRule, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    q, k = _queries_and_keys(rule)
    for head in range(rule.heads):
        for chosen in (np.arange(T), np.array([T - 1]), np.array([0]), np.array([9, 2, 3, 9])):
            weights = pattern(rule, q[chosen], k, head, chosen)
            assert weights.dtype == np.float32
            expected = _definition(rule, q[chosen], k, head, chosen)
            np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=1e-7)


@every_rule
def test_without_positions_the_queries_are_at_every_position(rule: AttentionRule) -> None:
    q, k = _queries_and_keys(rule)
    np.testing.assert_array_equal(pattern(rule, q, k, 1), pattern(rule, q, k, 1, np.arange(T)))


@every_rule
def test_weights_sum_to_one_or_to_less_beside_a_sink(rule: AttentionRule) -> None:
    sums = pattern(rule, *_queries_and_keys(rule), 2).sum(axis=1)
    if rule.sinks is None:
        np.testing.assert_allclose(sums, 1, rtol=1e-6)
    else:
        assert ((sums > 0) & (sums < 1)).all()


@every_rule
def test_a_key_that_is_not_seen_has_no_weight_and_no_influence(rule: AttentionRule) -> None:
    q, k = _queries_and_keys(rule)
    weights = pattern(rule, q, k, 3)
    assert (weights[np.triu_indices(T, 1)] == 0).all()
    changed = k.copy()
    changed[7:] = np.nan
    np.testing.assert_array_equal(pattern(rule, q, changed, 3)[:7], weights[:7])


def test_a_window_of_one_sees_the_query_itself() -> None:
    rule = RULES["window 1"]
    np.testing.assert_array_equal(pattern(rule, *_queries_and_keys(rule), 0), np.eye(T))


def test_one_position_attends_to_itself() -> None:
    q, k = _queries_and_keys(FULL)
    assert pattern(FULL, q[:1], k[:1], 0).tolist() == [[1]]


def test_no_queries_have_an_empty_pattern() -> None:
    q, k = _queries_and_keys(FULL)
    assert pattern(FULL, q[:0], k, 0, np.empty(0, np.int64)).shape == (0, T)
    assert pattern(FULL, q[:0], k[:0], 0).shape == (0, 0)


def _heads(rows: np.ndarray) -> torch.Tensor:
    """[1, heads, T, D], as torch and transformers hold them."""
    return torch.from_numpy(rows).view(1, len(rows), -1, D).transpose(1, 2)


def _stacked(rule: AttentionRule, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.stack([pattern(rule, q, k, head) for head in range(rule.heads)])


def test_weighted_values_are_those_of_torch() -> None:
    rule = RULES["grouped"]
    q, k = _queries_and_keys(rule)
    v = np.random.default_rng(1).standard_normal(k.shape).astype(np.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(
        _heads(q), _heads(k), _heads(v), is_causal=True, scale=rule.scale, enable_gqa=True
    )
    values = _heads(v)[0].repeat_interleave(2, dim=0).numpy()
    np.testing.assert_allclose(_stacked(rule, q, k) @ values, expected[0].numpy(), atol=2e-6)


def _transformers_mask(window: int | None) -> torch.Tensor:
    sees = sliding_window_causal_mask_function(window or T)
    at, none = torch.arange(T), torch.tensor(0)
    allowed = sees(none, none, at[:, None], at[None, :])
    return torch.zeros(T, T).masked_fill(~allowed, -torch.inf)[None, None]


@every_rule
def test_a_pattern_is_that_of_transformers(rule: AttentionRule) -> None:
    if rule.soft_cap is not None and rule.sinks is not None:
        rule = replace(rule, soft_cap=None)  # No model of transformers has both.
    q, k = _queries_and_keys(rule)
    module: Any = SimpleNamespace(
        num_key_value_groups=rule.heads // rule.key_value_heads, training=False
    )
    arguments = (module, _heads(q), _heads(k), _heads(k), _transformers_mask(rule.sliding_window))
    if rule.sinks is None:
        _, expected = modeling_gemma2.eager_attention_forward(
            *arguments, scaling=rule.scale, softcap=rule.soft_cap
        )
    else:
        module.sinks = torch.from_numpy(rule.sinks)
        _, expected = modeling_gpt_oss.eager_attention_forward(*arguments, scaling=rule.scale)
    np.testing.assert_allclose(_stacked(rule, q, k), expected[0].numpy(), rtol=1e-5, atol=1e-7)


INF = np.inf


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([INF, 0, 0], [1, 0, 0]),
        ([INF, INF, 0], [0.5, 0.5, 0]),
        ([-INF, 0, 0], [0, 0.5, 0.5]),
        ([-INF, -INF, -INF], [1 / 3, 1 / 3, 1 / 3]),
        ([-INF, INF, 0], [0, 1, 0]),
        ([3e38, -3e38, 0], [1, 0, 0]),
        ([1000, 1000, -1000], [0.5, 0.5, 0]),
    ],
)
def test_infinite_and_huge_scores_have_the_limit_of_a_softmax(
    scores: list[float], expected: list[float]
) -> None:
    rule = AttentionRule(heads=1, key_value_heads=1, head_dim=1, scale=1.0)
    q, k = np.ones((1, 1), np.float32), np.array(scores, np.float32)[:, np.newaxis]
    weights = pattern(rule, q, k, 0, np.array([2]))
    np.testing.assert_allclose(weights, [expected], rtol=1e-6)


def test_a_product_that_overflows_counts_as_the_largest_number() -> None:
    rule = AttentionRule(heads=1, key_value_heads=1, head_dim=2, scale=0.5)
    q, k = np.full((3, 2), 1e30, np.float32), np.full((3, 2), 1e30, np.float32)
    np.testing.assert_allclose(pattern(rule, q, k, 0)[2], [1 / 3] * 3, rtol=1e-6)


def test_a_soft_cap_bounds_infinite_scores() -> None:
    rule = AttentionRule(heads=1, key_value_heads=1, head_dim=1, scale=1.0, soft_cap=2.0)
    k = np.array([[INF], [-INF], [0]], np.float32)
    weights = pattern(rule, np.ones((1, 1), np.float32), k, 0, np.array([2]))
    exponentials = np.exp([2.0, -2.0, 0.0])
    np.testing.assert_allclose(weights[0], exponentials / exponentials.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("sink", "share"), [(-INF, 1.0), (-1000.0, 1.0), (0.0, 0.75), (1000.0, 0.0), (INF, 0.0)]
)
def test_a_sink_takes_its_share_and_an_infinite_one_all_or_nothing(
    sink: float, share: float
) -> None:
    rule = replace(FULL, sinks=np.full(4, sink, np.float32))
    # Scores of zero, so that the sink is one of four equals at position 2.
    weights = pattern(rule, np.zeros((3, 4 * D), np.float32), np.ones((3, 4 * D), np.float32), 0)
    np.testing.assert_allclose(weights[2], [share / 3] * 3, rtol=1e-6)


def test_nan_shows_in_the_queries_that_see_it() -> None:
    q, k = _queries_and_keys(FULL)
    k[4] = np.nan
    assert np.isnan(pattern(FULL, q, k, 0)).any(axis=1).tolist() == [i >= 4 for i in range(T)]


@pytest.mark.parametrize(
    ("weights", "k", "keys", "top"),
    [
        ([[0.25, 0.5, 0.25]], 1, [[1]], [[0.5]]),
        ([[0.25, 0.5, 0.25]], 2, [[1, 0]], [[0.5, 0.25]]),
        ([[1, 0, 0]], 2, [[0, NO_KEY]], [[1, 0]]),
        ([[1, 0, 0], [0.5, 0.5, 0]], 9, [[0, -1, -1], [0, 1, -1]], [[1, 0, 0], [0.5, 0.5, 0]]),
        ([[0, 0]], 2, [[-1, -1]], [[0, 0]]),
        (np.empty((0, 4)), 2, [], []),
    ],
    ids=["one", "a tie", "padded", "more than there are", "all to a sink", "no queries"],
)
def test_the_largest_weights_come_first_and_short_rows_are_padded(
    weights: object, k: int, keys: list[list[int]], top: list[list[float]]
) -> None:
    sparse = top_k(np.array(weights, np.float32), k)
    assert (sparse.keys.tolist(), sparse.weights.tolist()) == (keys, top)
    assert (sparse.keys.dtype, sparse.weights.dtype) == (np.int64, np.float32)


def test_a_nan_weight_is_not_taken_for_padding() -> None:
    sparse = top_k(np.array([[0.5, np.nan, 0]], np.float32), 2)
    assert sparse.keys.tolist() == [[1, 0]]


@every_rule
def test_all_the_keys_of_a_sparse_pattern_make_the_pattern(rule: AttentionRule) -> None:
    weights = pattern(rule, *_queries_and_keys(rule), 0)
    sparse = top_k(weights, T)
    rebuilt = np.zeros((T, T + 1), np.float32)  # Padding falls into the last column.
    np.put_along_axis(rebuilt, sparse.keys, sparse.weights, axis=1)
    np.testing.assert_array_equal(rebuilt[:, :T], weights)
    assert (np.diff(sparse.weights, axis=1) <= 0).all()


def test_blocks_come_in_order_and_are_whole_rows_of_the_pattern(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5 * 4 * T)
    q, k = _queries_and_keys(FULL)
    weights = pattern(FULL, q, k, 0)
    parts = list(pattern_blocks(FULL, q, k, 0))
    assert [(rows.start, rows.stop) for rows, _ in parts] == [(0, 5), (5, 10), (10, 13)]
    for rows, part in parts:
        np.testing.assert_array_equal(part, weights[rows])


@every_rule
def test_long_sequences_take_no_more_memory_than_one_block_and_the_result(
    rule: AttentionRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 50_000)
    length = 700
    rng = np.random.default_rng(2)
    q = rng.standard_normal((length, rule.heads * D)).astype(np.float32)
    k = rng.standard_normal((length, rule.key_value_heads * D)).astype(np.float32)
    tracemalloc.start()
    weights = pattern(rule, q, k, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - weights.nbytes < 10 * blocks.BLOCK_BYTES < weights.nbytes


@pytest.mark.parametrize(
    ("q", "k", "head", "positions", "message"),
    [
        ((T, 32), (T, 32), 4, None, "head 4 is out of range; give one from 0 to 3"),
        ((T, 32), (T, 32), -1, None, "head -1 is out of range; give one from 0 to 3"),
        ((T, 24), (T, 32), 0, None, "q is 24 wide; 4 heads of 8 need 32"),
        ((T, 32), (T, 16), 0, None, "k is 16 wide; 4 heads of 8 need 32"),
        ((3, 32), (T, 32), 0, [1, 2], "3 rows of q have 2 positions; give one a row"),
        ((2, 32), (T, 32), 0, [2, T], "queries at 2 to 13 need every key up to theirs, but k has"),
        ((2, 32), (T, 32), 0, [-1, 2], "queries at -1 to 2 need every key up to theirs"),
        ((T, 32), (2, 32), 0, None, "queries at 0 to 12 need every key up to theirs, but k has"),
    ],
)
def test_what_does_not_fit_is_refused(
    q: tuple[int, int],
    k: tuple[int, int],
    head: int,
    positions: list[int] | None,
    message: str,
) -> None:
    at = None if positions is None else np.array(positions)
    with pytest.raises(ValueError, match=message):
        pattern(FULL, np.zeros(q, np.float32), np.zeros(k, np.float32), head, at)
