"""The end of the model, applied to captured rows after a pass: final norm and unembedding."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import nn

from actserve_server.domain.runs import Unembed
from actserve_server.engine.vllm.sharding import AgreedGather, NotGatheredError

ROWS_AT_ONCE = 256
"""Of logits: 256 rows of 262,144 tokens take 268 MB in float32."""


class Head:
    """Every tensor-parallel rank must call it alike, since the vocabulary is split over them. Only
    rank 0 gets results; on the others they have the right number of rows and nothing else."""

    def __init__(
        self,
        compute_logits: Callable[[torch.Tensor], torch.Tensor | None],
        final_norm: nn.Module,
        vocabulary_size: int,
        gather: AgreedGather | None = None,
    ) -> None:
        """`gather` is what logits are gathered by from several ranks."""
        self._gather = gather
        self._compute_logits = compute_logits
        self._final_norm = final_norm
        self._vocabulary_size = vocabulary_size

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Of rows after the final norm, in their element type, [rows, vocabulary]."""
        return self.of_logits(rows, lambda logits: logits)

    def of_logits(
        self, rows: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """What is made of them, of some rows after the other: logits of all are never there."""
        return self._made(rows, lambda logits, _: make(logits.to(rows.dtype)), normed=True)

    def predictions(
        self, rows: torch.Tensor, unembed: Unembed, next_ids: np.ndarray, *, normed: bool
    ) -> torch.Tensor:
        """What `Unembed` says, float32 [rows, unembed.width], of rows after the final norm or
        before it."""

        def make(logits: torch.Tensor, part: slice) -> torch.Tensor:
            following = torch.from_numpy(next_ids[part]).to(rows.device)
            return _read(logits, unembed, following)

        return self._made(rows, make, normed=normed)

    def _made(
        self,
        rows: torch.Tensor,
        make: Callable[[torch.Tensor, slice], torch.Tensor],
        *,
        normed: bool,
    ) -> torch.Tensor:
        """Raises an error of this rank alone once all logits were computed, since other ranks
        compute their parts of them meanwhile; and NotGatheredError at once, on all of them."""
        made: list[torch.Tensor] = []
        error: Exception | None = None
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            try:
                with self._agreed():
                    logits = self._logits(rows[part] if normed else self._norm(rows[part]))
                if error is None:
                    made.append(make(logits, part))
            except NotGatheredError:
                raise
            except Exception as failure:
                error = failure
        if error is not None:
            raise error
        return torch.cat(made) if len(made) > 1 else made[0]

    def _norm(self, rows: torch.Tensor) -> torch.Tensor:
        normed = self._final_norm(rows)
        # Some return a residual too, of which there is none.
        return normed[0] if isinstance(normed, tuple) else normed

    def _agreed(self) -> AbstractContextManager[None]:
        return nullcontext() if self._gather is None else self._gather.agreed()

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        logits = self._compute_logits(rows)
        if logits is None:
            # Another rank's; what is made of these goes nowhere.
            return rows.new_zeros(1, 1).expand(len(rows), self._vocabulary_size)
        return logits[:, : self._vocabulary_size]


def _read(logits: torch.Tensor, unembed: Unembed, next_ids: torch.Tensor) -> torch.Tensor:
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(unembed.top_k)
    named = torch.tensor(unembed.token_ids, dtype=torch.int64, device=logits.device)
    parts = [top.indices.float(), top.values, logprobs[:, named]]
    if unembed.next_token:
        found = logprobs.gather(1, next_ids.clamp(min=0)[:, None])
        parts.append(found.masked_fill(next_ids[:, None] < 0, torch.nan))
    return torch.cat(parts, dim=1)
