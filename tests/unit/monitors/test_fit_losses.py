"""The scores that training sees are those that aggregators define."""

import numpy as np
import pytest
import torch

from actserve_server.domain.probes import (
    Aggregator,
    Attention,
    Ema,
    RollingMean,
    ScoreReduction,
)
from actserve_server.monitors.fit_losses import example_losses, streamed_losses

LENGTHS = [1, 2, 7, 40]
LABELS = torch.tensor([0.0, 1.0, 0.0, 1.0])
HEADS = 3


def numbers(outputs: int, spread: float = 3.0) -> torch.Tensor:
    """Of sequences of these lengths, with others behind their ends."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(len(LENGTHS), 40, outputs)) * spread)


def cross_entropy(score: np.ndarray, label: float) -> np.ndarray:
    return np.logaddexp(0, -score if label else score)


def weighted(scores: np.ndarray, label: float) -> float:
    weights = np.exp(scores) / np.exp(scores).sum()
    return float(weights @ cross_entropy(scores, label))


def attended(own: np.ndarray, tokens: int | None) -> np.ndarray:
    values, queries = own[:, :HEADS], own[:, HEADS:]
    scores = []
    for t in range(len(own)):
        window = slice(0 if tokens is None else max(0, t + 1 - tokens), t + 1)
        weights = np.exp(queries[window])
        scores.append((weights * values[window] / weights.sum(axis=0)).sum())
    return np.array(scores)


@pytest.mark.parametrize("reduction", ScoreReduction)
@pytest.mark.parametrize("smoothing", [None, Ema(0.3), Ema(1.0), RollingMean(1), RollingMean(6)])
def test_losses_are_of_the_scores_that_the_aggregator_defines(
    smoothing: Ema | RollingMean | None, reduction: ScoreReduction
) -> None:
    given = numbers(1)
    found = example_losses(given, torch.tensor(LENGTHS), LABELS, Aggregator(smoothing, reduction))
    for loss, own, length, label in zip(found, given, LENGTHS, LABELS, strict=True):
        scores = Aggregator(smoothing).scores(own[:length, 0].tolist())
        if reduction is ScoreReduction.MEAN:
            wanted = float(cross_entropy(scores.mean(), float(label)))
        else:
            wanted = weighted(scores, float(label))
        assert float(loss) == pytest.approx(wanted)


@pytest.mark.parametrize("tokens", [None, 1, 2, 6, 31, 32, 1000])
@pytest.mark.parametrize("spread", [1.0, 300.0], ids=["even", "far apart"])
def test_attention_is_over_the_last_tokens_and_overflows_nowhere(
    tokens: int | None, spread: float
) -> None:
    given = numbers(2 * HEADS)
    given[..., HEADS:] *= spread / 3
    how = Aggregator(Attention(tokens), ScoreReduction.MAX)
    found = example_losses(given, torch.tensor(LENGTHS), LABELS, how)
    for loss, own, length, label in zip(found, given, LENGTHS, LABELS, strict=True):
        wanted = weighted(
            attended(own[:length].numpy().astype(np.longdouble), tokens), float(label)
        )
        assert float(loss) == pytest.approx(wanted)


@pytest.mark.parametrize("tokens", [None, 6])
def test_its_gradient_is_the_slope(tokens: int | None) -> None:
    how = Aggregator(Attention(tokens), ScoreReduction.MAX)
    given = numbers(2 * HEADS, 1.0)[:, :9].clone().requires_grad_()

    def loss(of: torch.Tensor) -> torch.Tensor:
        return example_losses(of, torch.tensor([1, 2, 7, 9]), LABELS.double(), how)

    assert torch.autograd.gradcheck(loss, given)


def test_streamed_losses_are_of_whole_sliding_means_or_of_the_mean_of_a_short_sequence() -> None:
    given = numbers(1)
    found = streamed_losses(given, torch.tensor(LENGTHS), LABELS)
    for loss, own, length, label in zip(found, given, LENGTHS, LABELS, strict=True):
        each = own[:length, 0].numpy()
        starts = range(max(1, length - 15))
        means = np.array([each[start : start + 16].mean() for start in starts])
        assert float(loss) == pytest.approx(weighted(means, float(label)))
