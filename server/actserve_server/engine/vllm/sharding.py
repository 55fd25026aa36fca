"""Rows that tensor parallelism splits over ranks: by heads (q, k, v, z) or columns (mlp_act). And
what ranks must know of each other to go on alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


class AgreedGather:
    """Has ranks agree before they gather their parts of logits: one that has failed before would
    leave the others waiting in the gathering for ever. Of what vLLM gathers itself, where an error
    ends the engine, it asks nothing."""

    def __init__(self, logits_processor: Any) -> None:
        """Takes the place of what the processor gathers by."""
        self._gather = logits_processor._gather_logits
        logits_processor._gather_logits = self
        self._to_agree = False

    def __call__(self, logits: torch.Tensor) -> torch.Tensor | None:
        if self._to_agree:
            self._to_agree = False
            if failed_on_any_rank(False):
                raise NotGatheredError("on another rank")
        return self._gather(logits)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Around what gathers once. Raises NotGatheredError on every rank if one of them has failed
        before its part was there. Every rank must enter it alike."""
        self._to_agree = True
        try:
            yield
        except Exception as error:
            if not self._to_agree:
                raise
            failed_on_any_rank(True)
            raise NotGatheredError(type(error).__name__) from error
        finally:
            self._to_agree = False


class NotGatheredError(RuntimeError):
    """No rank has logits, since one has failed before its part was there; says what failed."""
