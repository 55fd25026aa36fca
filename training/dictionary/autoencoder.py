"""The sparse autoencoder while it learns, and as it is kept."""

from dataclasses import dataclass

import torch
from torch import nn


class LearningAutoencoder(nn.Module):
    """Works on rows that are centred and scaled: z = (x - center) * scale, so that an element's
    square is one on average. Rows of the decoder have norm one."""

    def __init__(self, center: torch.Tensor, scale: float, features: int, seed: int) -> None:
        """`center` is float32 [width]."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(features, len(center), generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        # Small, so that what is kept at first is not more than the row itself.
        self.encoder = nn.Parameter(directions * 0.5)
        self.encoder_bias = nn.Parameter(torch.zeros(features))
        self.decoder = nn.Parameter(directions.clone())
        self.bias = nn.Parameter(torch.zeros(len(center)))
        self.register_buffer("center", center)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("threshold", torch.tensor(-1.0))
        """What a feature has to exceed to be kept: a running mean over steps; -1 before any."""

    center: torch.Tensor
    scale: torch.Tensor
    threshold: torch.Tensor

    def normalized(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows.float() - self.center) * self.scale

    def before(self, normalized: torch.Tensor) -> torch.Tensor:
        """The features before any is dropped, [rows, features]; none is below zero."""
        return torch.relu((normalized - self.bias) @ self.encoder.T + self.encoder_bias)

    def reconstructed(self, features: torch.Tensor) -> torch.Tensor:
        """In place of the normalized rows, [rows, width]."""
        return features @ self.decoder + self.bias

    def kept(self) -> "Dictionary":
        """The same function of rows as they are. Rows of its decoder keep norm one, so that a
        feature says how much of its direction is in the row, in units of the row.

        With g = norm(d) / scale of the decoder's row d: f = g f', and d / norm(d) stands for d.
        """
        with torch.no_grad():
            norms = self.decoder.norm(dim=1)
            units = norms / self.scale
            bias = self.center + self.bias / self.scale
            return Dictionary(
                encoder=self.encoder * (units * self.scale)[:, None],
                encoder_bias=self.encoder_bias * units,
                thresholds=self.threshold * units,
                decoder=self.decoder / norms[:, None],
                bias=bias,
            ).rounded()


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """f = h where h = E (x - bias) + b is above its threshold, else 0; y = f D + bias. All are
    float32 in memory, of values that float16 has: what is measured is what is written."""

    encoder: torch.Tensor
    """[features, width]."""
    encoder_bias: torch.Tensor
    """[features]."""
    thresholds: torch.Tensor
    """[features]."""
    decoder: torch.Tensor
    """[features, width]."""
    bias: torch.Tensor
    """[width]."""

    def rounded(self) -> "Dictionary":
        return Dictionary(
            encoder=self.encoder.half().float(),
            encoder_bias=self.encoder_bias.half().float(),
            thresholds=self.thresholds.half().float(),
            decoder=self.decoder.half().float(),
            bias=self.bias.half().float(),
        )

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Features, float32 [..., features], of rows [..., width]."""
        before = (rows.float() - self.bias) @ self.encoder.T + self.encoder_bias
        return before * (before > self.thresholds)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.decoder + self.bias
