"""Logits and predictions of captured rows are those the model itself would give."""

import numpy as np
import pytest
import torch

from actserve_server.domain.runs import Unembed
from actserve_server.engine.vllm import head as head_module
from actserve_server.engine.vllm.head import Head
from tests.unit.vllm.toys import PADDED_VOCABULARY, VOCABULARY, WIDTH, Model

ROWS = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(4))
NEXT = np.array([3, 0, -1, 6, 2, 2, -1])
LENS = Unembed(top_k=3, token_ids=(6, 0), next_token=True)


class Unembedding:
    """Counts the rows of its calls; what pads the vocabulary is likelier than any token."""

    def __init__(self) -> None:
        self.model = Model()
        self.calls: list[int] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor | None:
        self.calls.append(len(rows))
        logits = self.model.compute_logits(rows)
        assert logits is not None
        logits[:, VOCABULARY:] = 1e4
        return logits


@pytest.fixture
def unembedding() -> Unembedding:
    return Unembedding()


@pytest.fixture
def head(unembedding: Unembedding) -> Head:
    return Head(unembedding, unembedding.model.norm, VOCABULARY)


def _logits(unembedding: Unembedding, rows: torch.Tensor) -> np.ndarray:
    """In float64."""
    return (rows.double() @ unembedding.model.head.double())[:, :VOCABULARY].numpy()


def _logprobs(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_logits_have_no_padding_and_the_element_type_of_the_rows(
    head: Head, unembedding: Unembedding
) -> None:
    assert PADDED_VOCABULARY > VOCABULARY
    got = head.logits(ROWS)
    _close(got.numpy(), _logits(unembedding, ROWS))
    assert head.logits(ROWS.bfloat16()).dtype is torch.bfloat16


def test_logits_of_many_rows_are_computed_some_at_a_time(
    head: Head, unembedding: Unembedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = head.logits(ROWS)
    predictions = head.predictions(ROWS, LENS, NEXT, normed=True)
    unembedding.calls.clear()
    monkeypatch.setattr(head_module, "ROWS_AT_ONCE", 3)
    assert torch.equal(head.logits(ROWS), whole)
    assert unembedding.calls == [3, 3, 1]
    got = head.predictions(ROWS, LENS, NEXT, normed=True)
    assert unembedding.calls == [3, 3, 1] * 2
    np.testing.assert_array_equal(got, predictions)


@pytest.mark.parametrize("normed", [False, True])
def test_predictions_are_log_probabilities_of_the_model(
    head: Head, unembedding: Unembedding, normed: bool
) -> None:
    rows = ROWS if normed else unembedding.model.norm.normed(ROWS)
    expected = _logprobs(_logits(unembedding, rows))
    got = head.predictions(ROWS, LENS, NEXT, normed=normed)
    assert got.shape == (7, LENS.width)
    assert got.dtype is torch.float32
    parts = LENS.split(got.numpy())

    ranked = np.argsort(-expected, axis=1)[:, :3]
    assert np.array_equal(parts.top_ids, ranked)
    top = np.take_along_axis(expected, ranked, axis=1)
    _close(parts.top_logprobs, top)
    _close(parts.token_logprobs, expected[:, [6, 0]])
    assert parts.next_token_logprobs is not None
    known = NEXT >= 0
    _close(parts.next_token_logprobs[known], expected[known, NEXT[known]])
    assert np.isnan(parts.next_token_logprobs[~known]).all()


@pytest.mark.parametrize(
    "unembed",
    [Unembed(top_k=2), Unembed(token_ids=(5,)), Unembed(next_token=True)],
    ids=["top", "tokens", "next"],
)
def test_only_what_is_asked_for_is_reported(head: Head, unembed: Unembed) -> None:
    whole = LENS.split(head.predictions(ROWS, LENS, NEXT, normed=True).numpy())
    rows = head.predictions(ROWS, unembed, NEXT, normed=True).numpy()
    assert rows.shape == (7, unembed.width)
    parts = unembed.split(rows)
    assert np.array_equal(parts.top_ids, whole.top_ids[:, : unembed.top_k])
    assert parts.token_logprobs.shape == (7, len(unembed.token_ids))
    assert (parts.next_token_logprobs is not None) == unembed.next_token


def test_a_rank_that_gets_no_logits_has_as_many_rows() -> None:
    model = Model()
    head = Head(lambda rows: None, model.norm, VOCABULARY)
    assert head.logits(ROWS).shape == (7, VOCABULARY)
    assert head.predictions(ROWS, LENS, NEXT, normed=False).shape == (7, LENS.width)


def test_what_fails_of_some_logits_leaves_all_computed_as_on_other_ranks(
    head: Head, unembedding: Unembedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "ROWS_AT_ONCE", 3)

    def fails(logits: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        head.of_logits(ROWS, fails)
    assert unembedding.calls == [3, 3, 1]
