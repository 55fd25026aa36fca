"""What training minimizes: the same scores of tokens as aggregators define, with gradients.

Everything is of several sequences at once, padded at their ends; `lengths` says how long each is,
int64 [sequences]. See domain/probes.py for the definitions.
"""

import torch
from torch import Tensor

from actserve_server.domain.probes import Aggregator, Attention, Ema, RollingMean, ScoreReduction

TEMPERATURE = 1.0
"""Tau of the weights of tokens."""
STREAMED_TOKENS = 16
"""M: tokens of a sliding mean."""

_FAR_BELOW = -1e30
"""In place of minus infinity, whose differences are not numbers."""


def example_losses(numbers: Tensor, lengths: Tensor, labels: Tensor, how: Aggregator) -> Tensor:
    """The loss of each sequence, [n], whose tokens have these numbers, [n, tokens, outputs]. Where
    the score is the mean over tokens, that of the mean; else the mean of the losses of all tokens,
    those with the highest scores counting most, since it is the highest that raises an alert."""
    scores = _smoothed(numbers, how)
    there = _mask(scores, lengths)
    if how.reduction is ScoreReduction.MEAN:
        mean = (scores * there).sum(1) / lengths
        return torch.nn.functional.binary_cross_entropy_with_logits(mean, labels, reduction="none")
    return _weighted(scores, there, labels)


def streamed_losses(numbers: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """The same for the sliding means of `STREAMED_TOKENS` numbers, from the first whole one on; of
    a shorter sequence, of the mean of all.

    Cunningham et al., "Constitutional Classifiers++", 2026: the sum over t >= M of
    a(t) BCE(y, sigmoid(zbar(t))), where a is the softmax over t of zbar(t) / tau.
    """
    scores = _means(numbers[..., 0], STREAMED_TOKENS)
    places = torch.arange(scores.shape[1])
    first = torch.clamp(lengths, max=STREAMED_TOKENS) - 1
    return _weighted(scores, _mask(scores, lengths) & (places >= first[:, None]), labels)


def _mask(scores: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(scores.shape[1]) < lengths[:, None]


def _weighted(scores: Tensor, there: Tensor, labels: Tensor) -> Tensor:
    weights = torch.softmax((scores / TEMPERATURE).masked_fill(~there, -torch.inf), dim=1)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels[:, None].expand_as(scores), reduction="none"
    )
    return (weights * losses).sum(1)


def _smoothed(numbers: Tensor, how: Aggregator) -> Tensor:
    match how.smoothing:
        case None:
            return numbers[..., 0]
        case Ema(weight):
            return _moving_average(numbers[..., 0], weight)
        case RollingMean(tokens):
            return _means(numbers[..., 0], tokens)
        case Attention(tokens):
            heads = numbers.shape[2] // 2
            attended = _attended(numbers[..., :heads], numbers[..., heads:], tokens)
            return attended.sum(2)


def _means(values: Tensor, tokens: int) -> Tensor:
    """The mean of the last tokens: attention to each of them alike."""
    return _attended(values[..., None], torch.zeros_like(values)[..., None], tokens)[..., 0]


def _moving_average(values: Tensor, weight: float) -> Tensor:
    """e(t) = a y(t) + (1 - a) e(t - 1): sums over 2, 4, 8 and more tokens at once."""
    found = torch.cat([values[:, :1], weight * values[:, 1:]], dim=1)
    step, factor = 1, 1 - weight
    while step < values.shape[1]:
        found = found + factor * _later(found, step, 0.0)
        step, factor = 2 * step, factor * factor
    return found


def _attended(values: Tensor, queries: Tensor, tokens: int | None) -> Tensor:
    """The mean over the last tokens, or all so far, weighted by the exponential of the queries;
    [sequences, tokens, heads].

    Sums over 1, 2, 4, 8 and more tokens are made of each other, and the window of those that its
    length is the sum of. Nothing is subtracted, so nothing cancels; and each sum is of exponentials
    beside their largest, so nothing overflows.
    """
    length = values.shape[1]
    left = length if tokens is None else min(tokens, length)
    weights = torch.exp(queries - queries.detach())  # One, whose gradient is the query's.
    power = _Sum(queries.detach(), weights, weights * values)
    window, width, step = None, 0, 1
    while left:
        if left & 1:
            part = power.later(width)
            window = part if window is None else window.plus(part)
            width += step
        left >>= 1
        if left:
            power, step = power.plus(power.later(step)), 2 * step
    assert window is not None
    return window.total / window.weight


class _Sum:
    """Sums of exp(query) and of exp(query) value over some tokens, beside exp(most)."""

    def __init__(self, most: Tensor, weight: Tensor, total: Tensor) -> None:
        self.most = most
        """Without gradient: the quotient does not depend on it."""
        self.weight = weight
        self.total = total

    def later(self, step: int) -> "_Sum":
        return _Sum(
            _later(self.most, step, _FAR_BELOW),
            _later(self.weight, step, 0.0),
            _later(self.total, step, 0.0),
        )

    def plus(self, other: "_Sum") -> "_Sum":
        most = torch.maximum(self.most, other.most)
        own, others = torch.exp(self.most - most), torch.exp(other.most - most)
        return _Sum(
            most,
            self.weight * own + other.weight * others,
            self.total * own + other.total * others,
        )


def _later(values: Tensor, step: int, filler: float) -> Tensor:
    """What was there so many tokens before."""
    if not step:
        return values
    before = torch.full_like(values[:, :step], filler)
    return torch.cat([before, values[:, : max(0, values.shape[1] - step)]], dim=1)
