"""Rows that tensor parallelism splits over ranks: by heads (q, k, v, z) or columns (mlp_act). And
what ranks must know of each other to go on alike."""

from dataclasses import dataclass

import torch
from vllm.distributed import get_tp_group, tensor_model_parallel_all_gather


@dataclass(frozen=True, slots=True)
class Shards:
    """How the row of one site lies on the ranks. Every rank must call `gather` alike."""

    rank: int
    size: int
    copies: int = 1
    """Ranks that hold the same part: more than one where there are fewer key-value heads than
    ranks."""

    @property
    def parts(self) -> int:
        """Different ones, which make up a row."""
        return self.size // self.copies

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Whole rows from every rank's part, [rows, width / parts]."""
        every = tensor_model_parallel_all_gather(part.contiguous(), dim=-1)
        parts = every.unflatten(1, (self.parts, self.copies, part.shape[1]))
        return parts[:, :, 0].flatten(1)

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of whole rows."""
        return whole.chunk(self.parts, dim=1)[self.rank // self.copies]


def failed_on_any_rank(failed: bool) -> bool:
    """Whether it failed here or on another rank. Every rank must call it alike. It is settled
    between processes of the host, so that nobody waits for a device."""
    flag = torch.tensor(int(failed))
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, get_tp_group().cpu_group)
    return bool(flag)
