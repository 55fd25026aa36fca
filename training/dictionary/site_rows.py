"""The rows to learn from: every row of chunks of text but attention sinks."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from training.models import blocks, output_of
from training.progress import track

EARLIEST = 1
"""First position in a chunk that rows are taken of: the row at position 0 is an attention sink,
whose norm is many times that of any other and would be all that is learned."""
SINK = 3.0
"""A row of more than this many times the median norm is one as well, wherever it is."""


@torch.inference_mode()
def extract(
    model: PreTrainedModel, chunks: Sequence[Sequence[int]], layer: int, batch: int = 32
) -> torch.Tensor:
    """resid_post of a layer, bfloat16 [chunks, tokens - EARLIEST, width]. Chunks are of one length.

    What comes after the layer in the model may be cut off.
    """
    ids = torch.tensor(chunks)
    rows: torch.Tensor | None = None
    with output_of(blocks(model)[layer]) as outputs:
        for start in track(range(0, len(ids), batch), "rows"):
            model.base_model(ids[start : start + batch], use_cache=False)
            found = outputs.pop()[:, EARLIEST:]
            if rows is None:  # Filled in place, since two copies would not fit everywhere.
                rows = torch.empty(len(ids), *found.shape[1:], dtype=torch.bfloat16)
            rows[start : start + len(found)] = found
    assert rows is not None
    return rows


def usual(rows: torch.Tensor) -> torch.Tensor:
    """Which of the rows [..., width] are no attention sinks, bool [...]."""
    norms = torch.stack([each.float().norm(dim=-1) for each in rows])
    return norms < SINK * norms.median()
