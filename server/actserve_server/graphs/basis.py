"""In what the work of an MLP is told: the units of a graph, such as neurons.

Whatever they are, a unit reads the stream linearly once the model is frozen, has an activation, and
writes to the stream in proportion to it. That is all that tracing needs to know.
"""

from typing import Protocol

import torch
from torch import Tensor, nn


class LayerUnits(Protocol):
    """The units of one MLP for one prompt, frozen."""

    activations: Tensor
    """float32 [tokens, units]."""

    @property
    def error(self) -> Tensor | None:
        """What the MLP wrote that none of this accounts for, [tokens, width]; None for nothing."""
        ...

    def read(self, state: Tensor) -> Tensor:
        """What each unit makes of other rows of the MLP's input, [..., tokens, width], with all
        held that is not linear: [..., tokens, units]; `activations` of those that were recorded."""
        ...

    def write(self, activations: Tensor) -> Tensor:
        """What units with these activations, [..., tokens, units], write: [..., tokens, width]."""
        ...

    def passed(self, state: Tensor) -> Tensor | None:
        """What is written past the units, linear in the MLP's input; None for nothing."""
        ...

    def reading(self, positions: Tensor, units: Tensor) -> Tensor:
        """The gradients of some units' `read` by the row at their position, [units, width]."""
        ...

    def written(self, gradients: Tensor) -> Tensor:
        """For gradients by what the MLP writes, [targets, tokens, width], how much each unit adds
        to each target: [targets, tokens, units]."""
        ...


class Basis(Protocol):
    """Kinds of units."""

    @property
    def is_past_norm(self) -> bool:
        """Whether units write what is added to the stream, past a norm of the MLP's branch."""
        ...

    def freeze(self, layer: int, mlp: nn.Module, state: Tensor, written: Tensor) -> LayerUnits:
        """The units of a layer's MLP for its input and what it wrote, [tokens, width]. Raises
        `NotTraceableError`."""
        ...


class NotTraceableError(Exception):
    """The model is not made of what this can trace; the message says of what."""


def same(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether they differ by no more than rounding, as a part of the largest."""
    size = float(torch.maximum(one.abs().max(), other.abs().max()))
    return bool((one - other).abs().max() <= tolerance * max(size, 1e-12))
