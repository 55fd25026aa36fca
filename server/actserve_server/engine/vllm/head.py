"""The end of the model, applied to captured rows after a pass: final norm and unembedding."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from actserve_server.domain.runs import Unembed

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
    ) -> None:
        self._compute_logits = compute_logits
        self._final_norm = final_norm
        self._vocabulary_size = vocabulary_size

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Of rows after the final norm, in their element type, [rows, vocabulary]."""
        return torch.cat([*self.logits_in_parts(rows)])

    def logits_in_parts(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same, some rows after the other, for what needs them for a moment only."""
        for part in _parts(rows):
            yield self._logits(part).to(rows.dtype)

    def predictions(
        self, rows: torch.Tensor, unembed: Unembed, next_ids: np.ndarray, *, normed: bool
    ) -> torch.Tensor:
        """What `Unembed` says, float32 [rows, unembed.width], of rows after the final norm or
        before it."""
        following = torch.from_numpy(next_ids).to(rows.device).split(ROWS_AT_ONCE)
        return torch.cat(
            [
                _read(self._logits(part if normed else self._final_norm(part)), unembed, ids)
                for part, ids in zip(_parts(rows), following, strict=True)
            ]
        )

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        logits = self._compute_logits(rows)
        if logits is None:
            # Another rank's; what is made of these goes nowhere.
            return rows.new_zeros(1, 1).expand(len(rows), self._vocabulary_size)
        return logits[:, : self._vocabulary_size]


def _parts(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.split(ROWS_AT_ONCE)


def _read(logits: torch.Tensor, unembed: Unembed, next_ids: torch.Tensor) -> torch.Tensor:
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(unembed.top_k)
    named = torch.tensor(unembed.token_ids, dtype=torch.int64, device=logits.device)
    parts = [top.indices.float(), top.values, logprobs[:, named]]
    if unembed.next_token:
        found = logprobs.gather(1, next_ids.clamp(min=0)[:, None])
        parts.append(found.masked_fill(next_ids[:, None] < 0, torch.nan))
    return torch.cat(parts, dim=1)
