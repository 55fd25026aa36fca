"""The basis of neurons: the hidden units of gated MLPs, as act(gate) x up.

A neuron's activation is a product of two numbers that both depend on the stream, so no way to hold
something makes it linear without a choice. It is that of layer-wise relevance propagation for
products (the half rule, as in Jafari et al., "RelP", 2025, which Arora et al., "Language model
circuits are sparse in the neuron basis", 2025, use for circuits of neurons): act(g) u becomes

    1/2 (r u0) g + 1/2 act(g0) u,   r = act(g0) / g0,

where what has a 0 is held at what it is in this prompt. At this prompt that is act(g0) u0, so what
is added by all of the stream sums to the neuron's activation exactly.
"""

from typing import Any

import torch
from torch import Tensor, nn

from actserve_server.graphs.basis import LayerUnits, NotTraceableError

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


class NeuronBasis:
    """Implements `actserve_server.graphs.basis.Basis`."""

    is_past_norm = False

    def freeze(self, layer: int, mlp: nn.Module, state: Tensor, written: Tensor) -> LayerUnits:
        missing = [name for name in _PARTS if not hasattr(mlp, name)]
        if missing:
            raise NotTraceableError(
                f"the MLP of layer {layer} is a {type(mlp).__name__} without {', '.join(missing)}; "
                "graphs of neurons take gated MLPs, one to a layer"
            )
        return GatedNeurons(mlp, state)


class GatedNeurons:
    """Implements `actserve_server.graphs.basis.LayerUnits`."""

    error = None

    def __init__(self, mlp: Any, state: Tensor) -> None:
        self._gate: nn.Linear = mlp.gate_proj
        self._up: nn.Linear = mlp.up_proj
        self._down: nn.Linear = mlp.down_proj
        with torch.no_grad():
            gate, up = self._gate(state), self._up(state)
            acted = mlp.act_fn(gate)
            self.activations = acted * up
            # The limit at zero, where the activation functions of gated MLPs are zero too.
            ratio = torch.where(gate.abs() > 1e-12, acted / gate, 0.5)
            self._of_gate = 0.5 * ratio * up
            self._of_up = 0.5 * acted

    def read(self, state: Tensor) -> Tensor:
        return self._of_gate * self._gate(state) + self._of_up * self._up(state)

    def write(self, activations: Tensor) -> Tensor:
        return self._down(activations)

    def passed(self, state: Tensor) -> None:
        """Nothing: all that an MLP writes, its neurons do."""

    def reading(self, positions: Tensor, units: Tensor) -> Tensor:
        of_gate = self._of_gate[positions, units, None] * self._gate.weight[units]
        return of_gate + self._of_up[positions, units, None] * self._up.weight[units]

    def written(self, gradients: Tensor) -> Tensor:
        return (gradients @ self._down.weight) * self.activations
