"""The activation reconstructor in training: explanations in, rows out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from training import lora
from training.models import blocks, cut, output_of, padded
from training.optimization import batches, optimize
from training.progress import track

_READ_BATCH = 64


class TrainedReconstructor(nn.Module):
    """The blocks of a language model up to a layer, their adapter, and the value head.

    The head starts as the identity, so before any training a row is what the model itself has at
    the end of a text.
    """

    def __init__(self, model: PreTrainedModel, rank: int, layer: int) -> None:
        super().__init__()
        self.model = cut(model, layer)
        self.trained = lora.adapt(model, rank)
        width = int(model.config.hidden_size)
        self.head = nn.Parameter(torch.eye(width, dtype=torch.float32))
        """The value head, [width, width]."""

    def forward(self, ids: list[list[int]]) -> torch.Tensor:
        """The rows that prompts, token ids, end in: float32 [prompts, width]."""
        table, lengths = padded(ids)
        # Padding is on the right, where causal attention leaves it out. What the final norm makes
        # of the last block's output is not used.
        with output_of(blocks(self.model)[-1]) as outputs:
            self.model.base_model(table, use_cache=False)
        states = outputs[0][torch.arange(len(ids)), lengths - 1]
        return functional.linear(states.float(), self.head)


def train(
    reconstructor: TrainedReconstructor,
    rows: torch.Tensor,
    prompts: list[list[int]],
    *,
    batch: int,
    rate: float,
    head_rate: float,
    seed: int,
    name: str,
) -> float:
    """One pass over rows [examples, width] and the prompts, token ids, with their explanations;
    returns the normalised mean squared error, 2 (1 - cosine), at its end."""

    def loss(each: list[int]) -> torch.Tensor:
        made = reconstructor([prompts[index] for index in each])
        return 2 * (1 - functional.cosine_similarity(made, rows[each].float())).mean()

    return optimize(
        [(reconstructor.trained, rate), ([reconstructor.head], head_rate)],
        batches([len(prompt) for prompt in prompts], batch, seed),
        loss,
        name,
    )


@torch.inference_mode()
def reconstruct(
    reconstructor: TrainedReconstructor, prompts: Sequence[list[int]], name: str
) -> np.ndarray:
    """The rows of prompts, float32 [prompts, width]."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows = np.empty((len(prompts), len(reconstructor.head)), np.float32)
    for start in track(range(0, len(order), _READ_BATCH), name):
        some = order[start : start + _READ_BATCH]
        rows[some] = reconstructor([prompts[index] for index in some]).numpy()
    return rows
