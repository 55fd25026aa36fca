"""Rows that tensor parallelism splits over ranks: by heads (q, k, v, z) or columns (mlp_act)."""

from dataclasses import dataclass

import torch
from vllm.distributed import tensor_model_parallel_all_gather


@dataclass(frozen=True, slots=True)
class Shards:
    """How the row of one site lies on the ranks. Every rank must call `gather` alike."""

    rank: int
    size: int
    copies: int = 1
    """Ranks that hold the same part: more than one where there are fewer key-value heads than
    ranks."""

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Whole rows from every rank's part, [rows, width / parts]."""
        every = tensor_model_parallel_all_gather(part.contiguous(), dim=-1)
        parts = every.unflatten(1, (self.size // self.copies, self.copies, part.shape[1]))
        return parts[:, :, 0].flatten(1)

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of whole rows."""
        return whole.chunk(self.size // self.copies, dim=1)[self.rank // self.copies]
