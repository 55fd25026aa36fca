"""Sums by token grow with the tokens that come, hold what they take, and give it back."""

import numpy as np
import pytest

from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.readouts.head_sums import HeadSums, LayerSums, sums_of
from actserve_server.readouts.statistics import Memory

HEADS, LAYERS = 2, (4, 1)
RNG = np.random.default_rng(0)


def found(token_ids: np.ndarray) -> LayerSums:
    """Of a sequence of these tokens, every one of which is a query."""
    tokens = len(token_ids)
    sums = np.zeros((HEADS, QueryMeasures(HEADS).numbers))
    given, received = RNG.random((2, HEADS, tokens))
    given[:, 0] = 0
    return sums_of(sums, np.arange(tokens), token_ids).told_by_token(
        given, received, np.arange(tokens)
    )


def test_many_tokens_of_many_sequences_are_added_up_by_token() -> None:
    sequences = [RNG.integers(0, 5000, 900) for _ in range(6)]
    parts = {layer: [found(ids) for ids in sequences] for layer in LAYERS}
    with HeadSums(LAYERS, HEADS, 7).within(Memory(1 << 30)) as sums:
        for index in range(len(sequences)):
            for layer in LAYERS:
                sums.add(layer, parts[layer][index])
        for layer in LAYERS:
            means = sums.means(layer)
            queries = sum(map(len, sequences))
            assert means.queries == queries
            for kind, told in (("given", means.query_tokens), ("received", means.key_tokens)):
                wanted = np.zeros((HEADS, 5000))
                for part in parts[layer]:
                    np.add.at(wanted.T, part.token_ids, getattr(part, kind).T)
                order = np.argsort(-wanted, axis=1)[:, :7]
                assert told.token_ids.tolist() == order.tolist()
                weights = np.take_along_axis(wanted, order, 1) / queries
                np.testing.assert_allclose(told.weights, weights, rtol=1e-6)


def test_what_sums_take_is_held_until_the_call_is_over() -> None:
    memory = Memory(100_000)
    few, many = np.arange(10), np.arange(4000)
    with HeadSums(LAYERS, HEADS, 1).within(memory) as sums:
        sums.add(1, found(few))
        with HeadSums(LAYERS, HEADS, 1).within(memory) as others:
            with pytest.raises(ActserveError) as refused:
                others.add(1, found(few))
            assert refused.value.reason is Reason.QUEUE_FULL
        with pytest.raises(ActserveError):
            sums.add(1, found(many))
        assert sums.means(1).queries == len(few)
    with HeadSums(LAYERS, HEADS, 1).within(memory) as others:
        others.add(1, found(few))


def test_nothing_is_held_where_no_tokens_are_wanted() -> None:
    with HeadSums(LAYERS, HEADS, 0).within(Memory(0)) as sums:
        sums.add(4, found(np.arange(10)))
        assert sums.means(4).key_tokens.token_ids.shape == (HEADS, 0)
        assert sums.means(1).queries == 0
