"""A summary of attention is what its definition makes of the whole pattern."""

import tracemalloc
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain import blocks
from actserve_server.domain.attention_patterns import NO_KEY, pattern
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.readouts.attention_summary import AttentionSummary, summarize

T, D = 13, 8
FULL = AttentionRule(heads=4, key_value_heads=4, head_dim=D, scale=D**-0.5)
SINKS = np.array([-1, 0, 2, 5], np.float32)
RULES = {
    "full": FULL,
    "grouped": replace(FULL, key_value_heads=2),
    "window": replace(FULL, sliding_window=4),
    "sinks": replace(FULL, sinks=SINKS),
    "everything": replace(FULL, key_value_heads=2, sliding_window=5, soft_cap=0.8, sinks=SINKS),
}
IDS = np.array([7, 3, 3, 7, 5, 3, 1, 7, 3, 3, 3, 2, 9])
"""Tokens 3 and 7 come again, 3 right after itself as well."""
OFFSETS = (0, 5, 12)
QUERIES = {
    "all": np.arange(T),
    "some": np.array([0, 1, 5, 8, 10]),
    "the first": np.array([0]),
    "none": np.arange(0),
}


def expected(
    patterns: np.ndarray, queries: np.ndarray, ids: np.ndarray, top_keys: int
) -> dict[str, Any]:
    """Every metric query by query, from whole patterns [heads, queries, keys]."""
    at = [(row, int(q)) for row, q in enumerate(queries)]
    previous = [patterns[:, row, q - 1] for row, q in at if q > 0]
    offsets = [[patterns[:, row, q - far] for row, q in at if q >= far] for far in OFFSETS]
    following = [(row, [k for k in range(1, q + 1) if ids[k - 1] == ids[q]]) for row, q in at]
    induction = [patterns[:, row, keys].sum(1) for row, keys in following if keys]
    entropy = [
        [-sum(w * np.log(w) for w in head if w > 0) for head in patterns[:, row]] for row, _ in at
    ]
    distance = [sum(patterns[:, row, k] * (q - k) for k in range(q + 1)) for row, q in at]
    received = mean([patterns[:, row] for row, _ in at], (len(patterns), patterns.shape[2]))
    top = np.full((len(patterns), top_keys), NO_KEY)
    top_means = np.zeros(top.shape)
    for head, row in enumerate(received):
        best = [k for k in np.argsort(-row, kind="stable")[:top_keys] if row[k] > 0]
        top[head, : len(best)], top_means[head, : len(best)] = best, row[best]
    return {
        "queries": len(queries),
        "previous_token_queries": len(previous),
        "induction_queries": len(induction),
        "offset_queries": tuple(len(each) for each in offsets),
        "previous_token": mean(previous),
        "current_token": mean([patterns[:, row, q] for row, q in at]),
        "first_token": mean([patterns[:, row, 0] for row, _ in at]),
        "induction": mean(induction),
        "entropy": mean(entropy),
        "distance": mean(distance),
        "at_offsets": np.stack([mean(each) for each in offsets], 1),
        "top_keys": top,
        "top_key_means": top_means,
    }


def mean(values: list[Any], shape: tuple[int, ...] = (4,)) -> np.ndarray:
    return np.array(values).mean(axis=0) if values else np.full(shape, np.nan)


def made_up(rule: AttentionRule, tokens: int = T) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k = (
        (2 * rng.standard_normal((tokens, heads * D))).astype(np.float32)
        for heads in (rule.heads, rule.key_value_heads)
    )
    return q, k


def summary(rule: AttentionRule, queries: np.ndarray, top_keys: int) -> AttentionSummary:
    q, k = made_up(rule)
    end = queries[-1] + 1 if len(queries) else 0
    return summarize(
        rule, q[queries], k[:end], queries, IDS[:end], offsets=OFFSETS, top_keys=top_keys
    )


@pytest.mark.parametrize("block_bytes", [1, 3 * 4 * T, 1 << 20])
@pytest.mark.parametrize("queries", QUERIES)
@pytest.mark.parametrize("name", RULES)
def test_every_metric_is_its_definition_in_any_block(
    name: str, queries: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, chosen = RULES[name], QUERIES[queries]
    q, k = made_up(rule)
    every = [pattern(rule, q, k, head)[chosen] for head in range(rule.heads)]
    whole = np.stack(every).astype(np.float64)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    for top_keys in (0, 3, T + 2):
        got = summary(rule, chosen, top_keys)
        wanted = expected(whole, chosen, IDS, top_keys)
        assert {field.name for field in fields(got)} == wanted.keys()
        for metric, value in wanted.items():
            found = getattr(got, metric)
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7, err_msg=metric)
            if isinstance(found, np.ndarray):
                assert found.dtype == (np.int64 if metric == "top_keys" else np.float32)


def test_means_of_parts_weighted_by_their_queries_are_the_mean_of_all() -> None:
    rule = RULES["everything"]
    whole = summary(rule, np.arange(T), 0)
    parts = [summary(rule, half, 0) for half in (np.arange(6), np.arange(6, T))]
    for metric, count in {
        "previous_token": "previous_token_queries",
        "induction": "induction_queries",
        "entropy": "queries",
    }.items():
        counts = [getattr(part, count) for part in parts]
        assert sum(counts) == getattr(whole, count)
        merged = np.average([getattr(part, metric) for part in parts], axis=0, weights=counts)
        np.testing.assert_allclose(merged, getattr(whole, metric), rtol=1e-6)


def test_a_head_that_copies_is_told_from_one_that_looks_back() -> None:
    once = np.arange(6)
    ids = np.concatenate([once, once])
    rule = AttentionRule(heads=2, key_value_heads=2, head_dim=12, scale=50.0)
    keys = np.eye(12, dtype=np.float32)
    # The first head attends to the token before, the second to what followed the same one.
    before, after = np.roll(keys, -1, axis=1), np.roll(keys, 12 - 5, axis=1)
    before[0], after[:6] = keys[0], keys[:6]
    got = summarize(rule, np.hstack([before, after]), np.hstack([keys, keys]), np.arange(12), ids)
    assert (got.previous_token_queries, got.induction_queries) == (11, 6)
    np.testing.assert_allclose(got.previous_token, [1, 0], atol=1e-6)
    np.testing.assert_allclose(got.induction, [0, 1], atol=1e-6)


def test_a_pattern_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 1024
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 17)
    q, k = made_up(FULL, tokens)
    positions = np.arange(tokens)
    tracemalloc.start()
    try:
        summarize(FULL, q, k, positions, positions % 7, offsets=(2,), top_keys=8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * blocks.BLOCK_BYTES < 4 * tokens * tokens
