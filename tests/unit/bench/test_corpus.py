"""Every reader gets the same corpus, and ours is compared with each in the same round."""

import numpy as np
import pytest

from bench.corpus import LONGEST, OURS, SHORTEST, CorpusFigures, corpus, corpus_rows, corpus_tables
from bench.readers import BATCH_TOKENS, by_length


def test_the_corpus_is_the_same_every_time() -> None:
    assert corpus(20) == corpus(20)
    assert corpus(20)[:10] == corpus(10)


def test_texts_differ_and_are_of_all_lengths() -> None:
    lengths = [len(text.split()) for text in corpus(300)]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert np.median(lengths) < np.mean(lengths)
    assert len(set(corpus(300))) == 300


def test_batches_hold_every_text_once_and_are_bounded_with_their_padding() -> None:
    texts = [[number] * length for number, length in enumerate((1, 900, 3, 1500, 600, 2, 900))]
    batches = [*by_length(texts)]
    assert sorted([*text] for batch in batches for text in batch) == sorted(texts)
    assert all(len(batch) * max(map(len, batch)) <= BATCH_TOKENS for batch in batches)


def test_a_text_longer_than_a_batch_goes_alone() -> None:
    long = [1] * (BATCH_TOKENS + 1)
    assert [[len(text) for text in batch] for batch in by_length([long, [1], [1, 1]])] == [
        [1, 2],
        [BATCH_TOKENS + 1],
    ]


def test_no_texts_are_no_batch() -> None:
    assert [*by_length([])] == []


def test_the_ratio_to_a_reader_is_the_median_of_the_rounds() -> None:
    ours, other = corpus_rows(100, {OURS: [1.0, 2.0, 4.0], "other": [3.0, 2.0, 8.0]})
    assert (ours.reader, ours.tokens_per_second, ours.ours_to_it) == (OURS, 50, 1)
    assert (other.reader, other.tokens_per_second) == ("other", pytest.approx(100 / 3))
    assert other.ours_to_it == 2


def test_readers_that_are_left_out_are_named_under_the_table() -> None:
    left_out = ["nnsight is not installed, so it was left out."]
    rows = corpus_rows(100, {OURS: [1.0], "transformers": [2.0]})
    table, *sentences = corpus_tables(CorpusFigures(3, 100, 1.0, rows, left_out))
    assert sentences == left_out
    assert not isinstance(table, str)
    assert [[*column.cells] for column in table.columns] == [
        [OURS, "transformers"],
        ["100", "50"],
        ["", "2.00"],
    ]
