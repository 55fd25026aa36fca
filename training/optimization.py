"""Passes over examples: batches of even length, and steps of AdamW."""

import math
import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from training.progress import track

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""
_WINDOW = 16
"""Batches among which examples are sorted by length, so that little is padded."""


def batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Indices of examples, each once, in a random order but examples of like length together."""
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    made = []
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lengths.__getitem__)
        made += [window[first : first + size] for first in range(0, len(window), size)]
    generator.shuffle(made)
    return made


def optimize(
    groups: Iterable[tuple[Sequence[nn.Parameter], float]],
    passes: Sequence[list[int]],
    loss: Callable[[list[int]], torch.Tensor],
    name: str,
) -> float:
    """One step for each batch of indices; the learning rate of each group of parameters rises and
    then falls to zero along a cosine. Returns the mean loss of the last tenth of the steps."""
    parameters = [{"params": list(group), "lr": rate} for group, rate in groups]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    rise = max(1, round(WARMUP * len(passes)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / len(passes))),
    )
    every = [each for group in parameters for each in group["params"]]
    losses: list[float] = []
    notes: dict[str, float] = {}
    for batch in track(passes, name, notes):
        value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.item())
        notes["loss"] = _mean(losses[-50:])
    return _mean(losses[-max(1, len(losses) // 10) :])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
