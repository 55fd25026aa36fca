"""The activation verbalizer in training: rows in its prompt, explanations after it."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from training import lora
from training.models import embed, padded, unembed
from training.optimization import batches, optimize


class TrainedVerbalizer(nn.Module):
    """A language model, its adapter, and the prompt it is asked with.

    All prompts are the same up to the row, so that part is run once for a whole batch.
    """

    def __init__(
        self, model: PreTrainedModel, rank: int, prompt: Sequence[int], slot: int, scale: float
    ) -> None:
        """`slot` is where in the prompt rows go, `scale` the L2 norm they are given."""
        super().__init__()
        self.model = model
        self.trained = lora.adapt(model, rank)
        self.head = torch.tensor([prompt[:slot]])
        """What comes before the row, int64 [1, tokens]."""
        self.tail = torch.tensor([prompt[slot + 1 :]])
        self._scale = scale

    def read_head(self, copies: int, cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of what comes before the row, once for every prompt of a batch."""
        cache = cache or DynamicCache(config=self.model.config)
        self.model.base_model(self.head, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(copies)
        return cache

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """What follows the head up to the answer, bfloat16 [rows, tokens, width]."""
        rows = rows.float()
        placed = rows * (self._scale / rows.norm(dim=-1, keepdim=True))
        tail = embed(self.model, self.tail)
        return torch.cat([placed[:, None].to(tail.dtype), tail.expand(len(rows), -1, -1)], dim=1)

    def loss(self, rows: torch.Tensor, answers: list[list[int]]) -> torch.Tensor:
        """The mean cross entropy of a token of the answers, token ids, in nats."""
        ids, lengths = padded(answers)
        begun = self.embed(rows)
        embedded = torch.cat([begun, embed(self.model, ids)], dim=1)
        # Padding is on the right, where causal attention leaves it out; only its loss is dropped.
        hidden = self.model.base_model(
            inputs_embeds=embedded, past_key_values=self.read_head(len(answers)), use_cache=True
        )[0]
        kept = torch.arange(ids.shape[1]) < lengths[:, None]
        logits = unembed(self.model, hidden[:, begun.shape[1] - 1 : -1][kept])
        return functional.cross_entropy(logits, ids[kept])


def train(
    verbalizer: TrainedVerbalizer,
    rows: torch.Tensor,
    answers: list[list[int]],
    *,
    batch: int,
    rate: float,
    seed: int,
    name: str,
) -> float:
    """One pass over rows [examples, width] and what is to be said of each, as token ids; returns
    the loss at its end."""
    return optimize(
        [(verbalizer.trained, rate)],
        batches([len(answer) for answer in answers], batch, seed),
        lambda each: verbalizer.loss(rows[each], [answers[index] for index in each]),
        name,
    )
