"""The rows to explain, and what the model itself expects next where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from training.models import blocks, output_of, unembed
from training.progress import track


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Of some positions of some chunks of tokens."""

    rows: torch.Tensor
    """resid_post of one layer, bfloat16 [vectors, width]."""
    chunk: torch.Tensor
    """Which chunk each is of, int64 [vectors]."""
    position: torch.Tensor
    """Where in it, int64 [vectors]."""
    next_ids: torch.Tensor
    """The likeliest next tokens, likeliest first, int64 [vectors, top]."""


@torch.inference_mode()
def extract(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[int]],
    layer: int,
    *,
    each: int,
    earliest: int,
    top: int,
    seed: int,
    batch: int = 32,
) -> Vectors:
    """Rows at `each` random positions of every chunk, from `earliest` on.

    Chunks are of one length. A row and the predictions come from the same forward pass.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(chunks)
    weights = torch.ones(len(ids), ids.shape[1] - earliest)
    position = earliest + torch.multinomial(weights, each, generator=generator).sort().values
    rows, next_ids = [], []
    with output_of(blocks(model)[layer]) as outputs:
        for start in track(range(0, len(ids), batch), "rows"):
            some = position[start : start + batch]
            at = (torch.arange(len(some))[:, None], some)
            final = model.base_model(ids[start : start + batch], use_cache=False)[0]
            rows.append(outputs.pop()[at])
            next_ids.append(unembed(model, final[at]).topk(top).indices)
    return Vectors(
        rows=torch.cat(rows).flatten(0, 1),
        chunk=torch.arange(len(ids)).repeat_interleave(each),
        position=position.flatten(),
        next_ids=torch.cat(next_ids).flatten(0, 1),
    )
