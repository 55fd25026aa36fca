"""The probes that are trained: a linear one for streamed text, a hidden layer, heads of attention.

Training sees scaled rows; what comes back reads rows as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actserve_server.domain.probe_networks import Hidden, ProbeNetwork
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.sites import Site
from actserve_server.monitors.fit_descent import Losses, Scale, Sequences, train
from actserve_server.monitors.fit_losses import example_losses, streamed_losses

_SEED = 0
"""Of what parameters begin as."""
_SMALL = 0.1
"""Of the values of heads at first, which differ but say little."""


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The rows of sequences, float32 [tokens, width], and their labels, to be fitted and to choose
    by."""

    rows: Sequence[np.ndarray]
    is_positive: np.ndarray
    set_aside: Sequence[np.ndarray]
    set_aside_is_positive: np.ndarray
    check: Callable[[], None]
    """Called before each step; may raise."""


def streamed(given: Training, sites: tuple[Site, ...]) -> ProbeNetwork:
    """A linear probe, trained on sliding means."""
    model = nn.Linear(given.rows[0].shape[1], 1)
    for each in model.parameters():
        nn.init.zeros_(each)
    scale = _train(model, streamed_losses, given)
    values, bias = _unscaled(model.weight, model.bias, scale)
    return ProbeNetwork(sites, _float32(values), bias=float(bias[0]))


def hidden_layer(
    given: Training, sites: tuple[Site, ...], units: int, how: Aggregator
) -> ProbeNetwork:
    """A hidden layer with a rectifier."""
    width = given.rows[0].shape[1]
    first, last = _seeded(width, units), _seeded(units, 1)
    model = nn.Sequential(first, nn.ReLU(), last)
    scale = _train(model, _of(how), given)
    weights, bias = _unscaled(first.weight, first.bias, scale)
    return ProbeNetwork(
        sites,
        _float32(_numbers(last.weight)),
        hidden=Hidden(_float32(weights), _float32(bias)),
        bias=float(last.bias.detach()),
    )


def attention(
    given: Training, sites: tuple[Site, ...], heads: int, how: Aggregator
) -> ProbeNetwork:
    """Heads of attention over tokens."""
    model = _Heads(given.rows[0].shape[1], heads)
    scale = _train(model, _of(how), given)
    # What is added to all queries of a head changes nothing; what is added to all of its values is
    # added to the score.
    values, added = _unscaled(model.values, torch.zeros(heads), scale)
    queries, _ = _unscaled(model.queries, torch.zeros(heads), scale)
    return ProbeNetwork(
        sites,
        _float32(values),
        queries=_float32(queries),
        bias=float(model.bias.detach()) + float(added.sum()),
    )


class _Heads(nn.Module):
    """V x and then Q x of rows x, with the bias shared out among the values, since the weights of
    each head sum to one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.values = nn.Parameter(_seeded(width, heads).weight.detach() * _SMALL)
        self.queries = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        values = rows @ self.values.T + self.bias / len(self.values)
        return torch.cat([values, rows @ self.queries.T], dim=1)


def _of(how: Aggregator) -> Losses:
    return lambda numbers, lengths, labels: example_losses(numbers, lengths, labels, how)


def _train(model: nn.Module, losses: Losses, given: Training) -> Scale:
    scale = Scale.of(given.rows)
    train(
        model,
        losses,
        Sequences(given.rows, given.is_positive, scale),
        Sequences(given.set_aside, given.set_aside_is_positive, scale),
        given.check,
    )
    return scale


def _seeded(width: int, outputs: int) -> nn.Linear:
    """A layer that begins at random, the same each time, without touching torch's own generator,
    which others in the process may use."""
    layer = nn.Linear(width, outputs, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(_SEED)
    bound = width**-0.5
    with torch.no_grad():
        for each in (layer.weight, layer.bias):
            each.uniform_(-bound, bound, generator=generator)
    return layer


def _unscaled(weights: Tensor, bias: Tensor, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """What does to rows as they are what these do to scaled ones, float64."""
    # w . (f (x - m)) + b = (w f) . x + (b - (w f) . m)
    found = _numbers(weights) * scale.factor
    return found, _numbers(bias) - found @ scale.mean


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
