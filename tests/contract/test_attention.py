"""Attention patterns: recomputed from the queries and keys that a plain capture shows."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import fetch, generate, intervention, matrices, run, site
from tests.contract.readouts import of_kind, patterns

HEADS, SHARED, HEAD_DIM, WINDOW = 4, 2, 4, 4
"""Of the fake engine; heads share keys in pairs, and odd layers see so many keys."""
LAYERS = [0, 1]


def expected(q: np.ndarray, k: np.ndarray, head: int, layer: int) -> np.ndarray:
    """The pattern of a head, query by query, in float64."""
    group = head // SHARED
    weights = np.zeros((len(q), len(k)))
    for i in range(len(q)):
        first = max(0, i - WINDOW + 1) if layer % 2 else 0
        query = q[i, head * HEAD_DIM : (head + 1) * HEAD_DIM].astype(np.float64)
        keys = k[first : i + 1, group * HEAD_DIM : (group + 1) * HEAD_DIM]
        scores = np.exp(keys @ query / np.sqrt(HEAD_DIM))
        weights[i, first : i + 1] = scores / scores.sum()
    return weights


def spec(layer: int, **fields: Any) -> dict[str, Any]:
    return {"attention": [{"layer": layer, "heads": [0, 1, 2, 3], **fields}]}


async def fetched(layer: int, make: Any = fetch, **fields: Any) -> list[np.ndarray]:
    sites = [site(layer, site_pb2.HOOK_POINT_Q), site(layer, site_pb2.HOOK_POINT_K)]
    rows = matrices(await run(make(capture={"sites": sites}, **fields)))
    return [rows[0, 0][1], rows[0, 1][1]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("make", [fetch, generate])
async def test_a_pattern_is_that_of_the_fetched_queries_and_keys(make: Any, layer: int) -> None:
    q, k = await fetched(layer, make)
    found = patterns(await run(make(capture=spec(layer))))
    assert found.keys() == {(0, 0, head) for head in range(HEADS)}
    for (_, _, head), got in found.items():
        assert got.queries == list(range(len(q)))
        np.testing.assert_allclose(got.weights, expected(q, k, head, layer), atol=1e-6)


async def test_the_whole_row_sums_to_one_and_has_every_key_up_to_the_last_query() -> None:
    queries = {"list": {"positions": [1, 3]}}
    found = patterns(await run(fetch("hello", capture=spec(0, queries=queries))))
    q, k = await fetched(0)
    for (_, _, head), got in found.items():
        assert got.queries == [1, 3]
        assert got.weights.shape == (2, 4)
        np.testing.assert_allclose(got.weights, expected(q, k, head, 0)[[1, 3], :4], atol=1e-6)
        np.testing.assert_allclose(got.weights.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("top_k", [1, 3, 9])
async def test_top_k_gives_the_largest_weights_of_the_whole_row(top_k: int, layer: int) -> None:
    dense = patterns(await run(fetch("hello", capture=spec(layer))))
    events = await run(fetch("hello", capture=spec(layer, top_k=top_k)))
    for key, got in patterns(events).items():
        assert got.weights.shape == got.keys.shape == (6, top_k)
        for row, weights, keys in zip(dense[key].weights, got.weights, got.keys, strict=True):
            order = [k for k in np.argsort(-row, kind="stable")[:top_k] if row[k] > 0]
            assert keys.tolist() == [*order, *[-1] * (top_k - len(order))]
            np.testing.assert_array_equal(weights, [*row[order], *[0] * (top_k - len(order))])


async def test_several_layers_heads_and_prompts_at_once() -> None:
    attention = [
        {"layer": -1, "heads": [3, 1]},
        {"layer": 0, "heads": [2], "queries": {"last": {}}, "top_k": 2},
    ]
    events = await run(fetch("ab", "cde", capture={"sites": [site()], "attention": attention}))
    found = patterns(events)
    assert {key: got.queries for key, got in found.items()} == {
        (0, 1, 3): [0, 1, 2],
        (0, 1, 1): [0, 1, 2],
        (0, 2, 2): [2],
        (1, 1, 3): [0, 1, 2, 3],
        (1, 1, 1): [0, 1, 2, 3],
        (1, 2, 2): [3],
    }
    alone = patterns(await run(fetch("cde", capture={"attention": attention[:1]})))
    np.testing.assert_array_equal(found[1, 1, 3].weights, alone[0, 0, 3].weights)
    assert matrices(events)[1, 0][0] == [0, 1, 2, 3]


async def test_patterns_follow_interventions() -> None:
    edits = [intervention(site(0, site_pb2.HOOK_POINT_K), heads=[1], zero={})]
    q, k = await fetched(0, interventions=edits)
    found = patterns(await run(fetch(capture=spec(0), interventions=edits)))
    for (_, _, head), got in found.items():
        np.testing.assert_allclose(got.weights, expected(q, k, head, 0), atol=1e-6)
    # Keys of zero score alike.
    np.testing.assert_allclose(found[0, 0, 2].weights[5], np.full(6, 1 / 6), rtol=1e-6)


async def test_generated_queries_that_never_come_have_no_pattern() -> None:
    events = await run(generate(capture=spec(0, queries={"token_ids": {"ids": [0]}})))
    assert not of_kind(events, "attention")


async def test_queries_among_generated_tokens_have_keys_up_to_the_last_of_them() -> None:
    written = [token for chunk in of_kind(await run(generate()), "tokens") for token in chunk.ids]
    events = await run(generate(capture=spec(0, queries={"token_ids": {"ids": [written[1]]}})))
    q, k = await fetched(0, generate)
    at = [i for i, token in enumerate([256, *b"hello", *written[:-1]]) if token == written[1]]
    for (_, _, head), got in patterns(events).items():
        assert got.queries == at
        whole = expected(q, k, head, 0)
        np.testing.assert_allclose(got.weights, whole[at, : at[-1] + 1], atol=1e-6)


async def test_weights_are_f32_in_a_model_that_is_not() -> None:
    half = FakeEngine(element_type=ElementType.BF16)
    sites = [site(0, site_pb2.HOOK_POINT_Q), site(0, site_pb2.HOOK_POINT_K)]
    rows = matrices(await run(fetch(capture={"sites": sites}), half))
    found = patterns(await run(fetch(capture=spec(0)), half))
    for (_, _, head), got in found.items():
        exact = expected(rows[0, 0][1], rows[0, 1][1], head, 0)
        np.testing.assert_allclose(got.weights, exact, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 300])
async def test_no_message_of_attention_exceeds_one_mebibyte(top_k: int | None) -> None:
    events = await run(fetch("x" * 999, capture=spec(0, top_k=top_k)), FakeEngine(layer_count=1))
    assert max(event.ByteSize() for event in events) <= 1 << 20
    assert len(of_kind(events, "attention")) > HEADS
    assert all(got.queries == list(range(1000)) for got in patterns(events).values())
