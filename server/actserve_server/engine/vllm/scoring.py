"""Scores of tokens on the model's device, as `domain/probes.py` defines them.

Many tokens of many sequences at once, without waiting for the device. What a score needs of the
tokens before is a vector of its sequence, float64 [state]: how many tokens it has seen, then what
its smoothing keeps, then what its reduction keeps. It begins as zeros.
"""

import torch
from torch.nn.functional import avg_pool1d

from actserve_server.domain.probes import Aggregator, Ema, RollingMean, ScoreReduction


def advance(
    numbers: torch.Tensor, aggregator: Aggregator, weights: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    """The scores of the next tokens of some sequences, from their numbers, both float64
    [sequences, tokens]. `state`, [sequences, state], moves on in place. `weights` are those of each
    sequence's `Ema`, [sequences, 1], whatever weight the aggregator has."""
    smoothed, reduced = _split(state[:, 1:], aggregator)
    seen = state[:, :1]
    counts = seen + torch.arange(1, numbers.shape[1] + 1, device=numbers.device)
    scores = numbers
    match aggregator.smoothing:
        case Ema():
            before = torch.where(seen > 0, smoothed, numbers[:, :1])
            scores = _moving_averages(numbers, weights, before)
            smoothed.copy_(scores[:, -1:])
        case RollingMean(window):
            latest = torch.cat([smoothed, numbers], dim=1)
            sums = avg_pool1d(latest[:, None], window, stride=1)[:, 0] * window
            scores = sums / counts.clamp(max=window)
            smoothed.copy_(latest[:, latest.shape[1] - smoothed.shape[1] :])
    match aggregator.reduction:
        case ScoreReduction.MEAN:
            totals = reduced + scores.cumsum(1)
            scores = totals / counts
            reduced.copy_(totals[:, -1:])
        case ScoreReduction.MAX:
            before = torch.where(seen > 0, reduced, -torch.inf)
            scores = torch.cat([before, scores], dim=1).cummax(1).values[:, 1:]
            reduced.copy_(scores[:, -1:])
    seen.copy_(counts[:, -1:])
    return scores


def _split(state: torch.Tensor, aggregator: Aggregator) -> tuple[torch.Tensor, torch.Tensor]:
    """What smoothing keeps and what the reduction keeps, as views."""
    kept = state.shape[1] - (aggregator.reduction is not ScoreReduction.NEWEST)
    return state[:, :kept], state[:, kept:]


def _moving_averages(
    numbers: torch.Tensor, weights: torch.Tensor, before: torch.Tensor
) -> torch.Tensor:
    """In as many steps as doubling takes to reach the number of tokens: after each, an average
    looks back twice as far."""
    averages, decay = weights * numbers, 1 - weights
    averages[:, :1] += decay * before
    reach = 1
    while reach < numbers.shape[1]:
        further = averages[:, reach:] + decay * averages[:, :-reach]
        averages = torch.cat([averages[:, :reach], further], dim=1)
        decay, reach = decay * decay, 2 * reach
    return averages
