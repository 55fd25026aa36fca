"""The basis of features: transcoders in the place of MLPs, and what they leave out.

A feature of a transcoder is linear in the MLP's input once it is held which features are active, so
that nothing else has to be chosen. What all features, biases and skip connections together lack of
what the MLP wrote is an error, which is a source of its own and has none.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from actserve_server.dictionaries.dictionary import LoadedDictionary
from actserve_server.graphs.basis import LayerUnits, NotTraceableError


class TranscoderBasis:
    """Implements `actserve_server.graphs.basis.Basis`. There is a transcoder for each layer, which
    reads `mlp_in` and writes `mlp_out`."""

    is_past_norm = True

    def __init__(self, transcoders: Sequence[LoadedDictionary]) -> None:
        self._transcoders = transcoders

    def freeze(self, layer: int, mlp: nn.Module, state: Tensor, written: Tensor) -> LayerUnits:
        if layer >= len(self._transcoders):
            raise NotTraceableError(f"there is no transcoder for layer {layer}")
        return FrozenFeatures(self._transcoders[layer], state, written)


class FrozenFeatures:
    """Implements `actserve_server.graphs.basis.LayerUnits`."""

    error: Tensor | None

    def __init__(self, transcoder: LoadedDictionary, state: Tensor, written: Tensor) -> None:
        of = transcoder.matrices
        self._encoder = _tensor(of.encoder)
        self._bias = _tensor(of.encoder_bias)
        if of.input_bias is not None:
            self._bias = self._bias - self._encoder @ _tensor(of.input_bias)
        self._decoder = _tensor(of.decoders[0])
        decoder_bias, skip = of.decoder_biases[0], of.skips[0]
        self._decoder_bias = None if decoder_bias is None else _tensor(decoder_bias)
        self._skip = None if skip is None else _tensor(skip)
        with torch.no_grad():
            # By the dictionary's own activation, which tells what is active.
            self.activations = torch.from_numpy(transcoder.encode(state.numpy()))
            self._active = (self.activations != 0).to(torch.float32)
            said = self.write(self.activations)
            if (passed := self.passed(state)) is not None:
                said = said + passed
            self.error = written - said

    def read(self, state: Tensor) -> Tensor:
        return (state @ self._encoder.T + self._bias) * self._active

    def write(self, activations: Tensor) -> Tensor:
        made = activations @ self._decoder
        return made if self._decoder_bias is None else made + self._decoder_bias

    def passed(self, state: Tensor) -> Tensor | None:
        return None if self._skip is None else state @ self._skip.T

    def reading(self, positions: Tensor, units: Tensor) -> Tensor:
        return self._encoder[units] * self._active[positions, units, None]

    def written(self, gradients: Tensor) -> Tensor:
        return (gradients @ self._decoder.T) * self.activations


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
