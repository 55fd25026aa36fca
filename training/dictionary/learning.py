"""How a sparse autoencoder learns from rows."""

import math

import torch

from training.dictionary.autoencoder import LearningAutoencoder
from training.dictionary.choices import Choices
from training.progress import track

_WARM_UP = 0.05
"""Share of the steps in which the rate rises."""
_DECAY = 0.3
"""Share of the steps, the last, in which it falls."""
_FORGOTTEN_ROWS = 100_000
"""A feature that no row of these activated counts as dead, and is given the errors to explain."""
_REVIVED = 256
"""Dead features that do so at a row."""
_REVIVAL_WEIGHT = 1 / 32
_SMOOTHING = 0.99
"""Of the threshold, from step to step."""


def learn(rows: torch.Tensor, choices: Choices) -> LearningAutoencoder:
    """Rows are [rows, width] of any float type."""
    generator = torch.Generator().manual_seed(choices.seed)
    sample = rows[torch.randperm(len(rows), generator=generator)[:50_000]].float()
    center = sample.mean(0)
    scale = 1 / math.sqrt((sample - center).square().mean().item())
    model = LearningAutoencoder(center, scale, choices.features, choices.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=choices.rate, betas=(0.9, 0.999))
    silent = torch.zeros(choices.features)
    """Rows since each feature was last active."""
    a_step = choices.batch
    steps = choices.epochs * (len(rows) // a_step)
    order = torch.empty(0, dtype=torch.int64)
    notes: dict[str, float] = {}
    for step in track(range(steps), "fit", notes):
        if len(order) < a_step:
            order = torch.randperm(len(rows), generator=generator)
        chosen, order = order[:a_step], order[a_step:]
        for group in optimizer.param_groups:
            group["lr"] = choices.rate * _share_of_rate(step / steps)
        normalized = model.normalized(rows[chosen])
        dead = silent > _FORGOTTEN_ROWS
        with torch.autocast("cpu", torch.bfloat16):
            before = model.before(normalized)
            floor = _floor(before, choices.k)
            features = torch.where(before > floor, before, 0)
            error = normalized - model.reconstructed(features)
            loss = error.square().mean()
            revival = _revival(model, before, error.detach(), dead)
        optimizer.zero_grad()
        (loss.float() + _REVIVAL_WEIGHT * revival).backward()
        _along_sphere(model.decoder)
        optimizer.step()
        with torch.no_grad():
            model.decoder.div_(model.decoder.norm(dim=1, keepdim=True))
            active = (features > 0).any(0)
            silent = torch.where(active, 0.0, silent + a_step)
            new = model.threshold < 0
            smoothed = _SMOOTHING * model.threshold + (1 - _SMOOTHING) * floor
            model.threshold.copy_(torch.where(new, floor, smoothed))
        notes["explained"] = 1 - loss.item() / normalized.var(0).mean().item()
        notes["dead"] = float(dead.sum())
    return model


def _share_of_rate(done: float) -> float:
    return min(1.0, done / _WARM_UP, (1 - done) / _DECAY)


def _floor(before: torch.Tensor, k: int) -> torch.Tensor:
    """What the features that are kept exceed: the value after the `k` * rows largest."""
    flat = before.detach().float().flatten()
    return flat.kthvalue(len(flat) - k * len(before)).values


def _revival(
    model: LearningAutoencoder, before: torch.Tensor, error: torch.Tensor, dead: torch.Tensor
) -> torch.Tensor:
    """How badly the dead features explain what the others leave over, relative to it (Gao et al.,
    "Scaling and evaluating sparse autoencoders", 2024)."""
    count = int(dead.sum())
    if not count:
        return torch.zeros(())
    candidates = before[:, dead]
    largest = candidates.topk(min(_REVIVED, count), dim=1)
    chosen = torch.zeros_like(candidates).scatter(1, largest.indices, largest.values)
    left = error - chosen @ model.decoder[dead]
    return left.float().square().mean() / error.float().square().mean()


def _along_sphere(decoder: torch.nn.Parameter) -> None:
    """Takes out of the gradient what would only change the norms, which are held at one."""
    assert decoder.grad is not None
    with torch.no_grad():
        along = (decoder.grad * decoder).sum(1, keepdim=True)
        decoder.grad -= along * decoder
