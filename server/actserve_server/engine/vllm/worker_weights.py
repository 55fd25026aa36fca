"""The weights of the loaded model, as far as its modules hold them plainly. Runs in the worker.

Each tensor-parallel rank answers with what it holds and nothing else, so no rank waits for another;
`weight_reader.py` puts the parts together in the server's process.

vLLM packs the matrices of linear layers for the processor and drops the originals. Such a layer is
read by giving it rows of the identity matrix: each product is of one weight with one, all others
with zero, so what comes out is the weight itself, bit by bit.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, LayerNorm, RMSNorm
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.transformers.fusers.rms_norm import (
    TPAwareGemmaRMSNorm,
    TPAwareRMSNorm,
)

from actserve_server.domain.weights import HeadMatrix, TokenMatrix
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import Family


class Weights:
    """Of one rank. What it gives is plain numbers and bytes, in the model's element type unless
    told otherwise."""

    def __init__(
        self, model: nn.Module, family: Family, dimensions: Dimensions, rank: int, ranks: int
    ) -> None:
        self._model = model
        self._family = family
        self._dimensions = dimensions
        copies = dimensions.key_value_copies(ranks)
        self._heads = _part(dimensions.heads, rank, ranks)
        self._key_value_heads = _part(dimensions.key_value_heads, rank // copies, ranks // copies)

    def describe(self) -> dict[str, Any]:
        """Why parts are not served, empty where they are, and the final norm."""
        tokens = self._tokens_unserved()
        heads = self._heads_unserved()
        norm, no_norm = _final_norm(self._model.get_submodule(self._family.final_norm))
        after, unknown = self._after_unembedding()
        scaled = "its layers multiply the stream, so that it is not the sum of what was added"
        attribution = tokens or no_norm or unknown or (scaled if self._family.scaled_stream else "")
        return {
            "tokens_unserved": tokens,
            "heads_unserved": heads,
            "attribution_unserved": attribution,
            "head_attribution_unserved": (attribution or heads or self._between_heads_and_stream()),
            "final_norm": norm,
            **after,
        }

    def token_rows(self, matrix: str, token_ids: Sequence[int]) -> dict[str, Any]:
        """Rows of those tokens that this rank holds, and which of `token_ids` they are."""
        module = self._token_module(TokenMatrix(matrix))
        start = module.shard_indices.org_vocab_start_index
        ids = np.array(token_ids, np.int64)
        (held,) = np.nonzero((ids >= start) & (ids < module.shard_indices.org_vocab_end_index))
        index = torch.from_numpy(ids[held] - start).to(module.weight.device)
        return {"held": held.tolist(), "rows": _bytes(module.weight[index])}

    def head_rows(self, layer: int, head: int, matrix: str, start: int, stop: int) -> bytes | None:
        """Rows [start, stop) of a matrix of a query head; None if another rank holds it."""
        which = HeadMatrix(matrix)
        dimensions = self._dimensions
        width = dimensions.head_width
        of_group = which in (HeadMatrix.KEY, HeadMatrix.VALUE)
        held = self._key_value_heads if of_group else self._heads
        number = head * dimensions.key_value_heads // dimensions.heads if of_group else head
        if number not in held:
            return None
        first = (number - held.start) * width
        if which is HeadMatrix.OUTPUT:
            return _bytes(_rows(self._output(layer), range(first + start, first + stop)))
        before = {
            HeadMatrix.QUERY: 0,
            HeadMatrix.KEY: len(self._heads),
            HeadMatrix.VALUE: len(self._heads) + len(self._key_value_heads),
        }
        first += before[which] * width
        columns = slice(first, first + width)
        return _bytes(_rows(self._projection(layer), range(start, stop), columns))

    def seen_by_heads(self, layer: int, directions: bytes) -> bytes:
        """Directions in the stream, float32 [directions, width], as the heads of this rank see
        them: float32 [heads, head width, directions]."""
        output, width = self._output(layer), self._dimensions.head_width
        stream = torch.frombuffer(bytearray(directions), dtype=torch.float32)
        stream = stream.view(-1, self._dimensions.width)
        seen = []
        for index in range(len(self._heads)):
            part = _rows(output, range(index * width, (index + 1) * width))
            seen.append(part.float() @ stream.to(part.device).T)
        return _bytes(torch.stack(seen))

    def _tokens_unserved(self) -> str:
        for matrix in TokenMatrix:
            try:
                module = self._token_module(matrix)
            except AttributeError:
                return f"{type(self._model).__name__} has no {matrix} where its family has it"
            method = getattr(module, "quant_method", None)
            if not isinstance(method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
                return f"its {matrix} is quantized by {type(method).__name__}"
            if module.weight.shape[1:] != (self._dimensions.width,):
                return f"its {matrix} has rows of shape {[*module.weight.shape[1:]]}"
            if getattr(module, "bias", None) is not None:
                return f"its {matrix} has a bias"
        return ""

    def _between_heads_and_stream(self) -> str:
        if self._family.normed_branches:
            return "a norm comes between what the heads write and the residual stream"
        if self._family.branch_scale is not None:
            return "a factor comes between what the heads write and the residual stream"
        return ""

    def _heads_unserved(self) -> str:
        if self._family.attention_input is None or self._family.attention_output is None:
            return "its heads have no matrices for queries, keys and values in common"
        width, own = self._dimensions.width, self._dimensions.head_width * len(self._heads)
        shared = self._dimensions.head_width * len(self._key_value_heads)
        for index in range(len(self._layers)):
            for name, find, shape in (
                ("input projection", self._projection, (width, own + 2 * shared)),
                ("output projection", self._output, (own, width)),
            ):
                try:
                    linear = find(index)
                except AttributeError:
                    return f"layer {index} has no {name} of attention where its family has it"
                method = getattr(linear, "quant_method", None)
                if not isinstance(method, UnquantizedLinearMethod):
                    return f"the {name} of layer {index} is quantized by {type(method).__name__}"
                found = linear.input_size_per_partition, linear.output_size_per_partition
                if found != shape:
                    return f"the {name} of layer {index} has shape {[*found]}, not {[*shape]}"
        return ""

    def _after_unembedding(self) -> tuple[dict[str, Any], str]:
        """What logits are multiplied with and capped by, or why that is not known."""
        processor: Any = getattr(self._model, "logits_processor", None)
        if processor is None or processor.logits_as_input:
            return {}, f"{type(self._model).__name__} makes its logits in a way of its own"
        if processor.soft_cap and processor.scale != 1:
            return {}, "its logits are scaled after a soft cap"
        return {"logit_scale": float(processor.scale), "soft_cap": processor.soft_cap}, ""

    def _token_module(self, matrix: TokenMatrix) -> Any:
        family = self._family
        path = family.embedding if matrix is TokenMatrix.EMBEDDING else family.unembedding
        return self._model.get_submodule(path)

    @property
    def _layers(self) -> Any:
        return self._model.get_submodule(self._family.layers)

    def _projection(self, layer: int) -> Any:
        return _base(self._layers[layer].get_submodule(self._family.attention_input))

    def _output(self, layer: int) -> Any:
        return _base(self._layers[layer].get_submodule(self._family.attention_output))


def _base(linear: Any) -> Any:
    """A layer as it is without the LoRA adapters that it may have."""
    return getattr(linear, "base_layer", linear)


def _part(count: int, rank: int, ranks: int) -> range:
    """Which of `count` heads a rank holds."""
    size = count // ranks
    return range(rank * size, (rank + 1) * size)


def _rows(linear: Any, rows: range, columns: slice = slice(None)) -> torch.Tensor:
    """Rows of the matrix that multiplies a layer's inputs from the right, [rows, columns]."""
    inputs, outputs = linear.input_size_per_partition, linear.output_size_per_partition
    weight = linear.weight
    if weight.shape == (outputs, inputs):
        return weight[columns, rows.start : rows.stop].T
    index = torch.arange(rows.start, rows.stop, device=weight.device)
    unit = torch.zeros(len(rows), inputs, dtype=weight.dtype, device=weight.device)
    unit[torch.arange(len(rows), device=weight.device), index] = 1
    return linear.quant_method.apply(linear, unit)[:, columns]


_CENTERED: Collection[type] = (LayerNorm,)
_SHIFTED: Collection[type] = (GemmaRMSNorm, TPAwareGemmaRMSNorm)
_PLAIN: Collection[type] = (RMSNorm, TPAwareRMSNorm)


def _final_norm(norm: Any) -> tuple[dict[str, Any], str]:
    """What the final norm does, or why that is not known. Classes that are made of these may do
    something else."""
    kind = type(norm)
    if kind in _CENTERED and norm.weight is not None:
        return _described(norm.weight, norm.bias, norm.eps, centered=True), ""
    if kind in _SHIFTED and norm.weight is not None:
        return _described(norm.weight.float() + 1, None, norm.variance_epsilon), ""
    if kind in _PLAIN and norm.weight is not None and norm.variance_size_override is None:
        return _described(norm.weight, None, norm.variance_epsilon), ""
    return {}, f"its final norm is a {kind.__name__}, which this server does not know"


def _described(
    gain: torch.Tensor, bias: torch.Tensor | None, epsilon: float, *, centered: bool = False
) -> dict[str, Any]:
    return {
        "gain": _bytes(gain.float()),
        "bias": None if bias is None else _bytes(bias.float()),
        "epsilon": float(epsilon),
        "centered": centered,
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
