"""Has vLLM's sampler give the tokens that a run replays (`Run.replayed`), and nothing else moves.

At each of these steps all logits but one are masked, after all that may change which token is
likeliest and before the penalties, temperature and filters, none of which can prefer a masked
token. The sampler draws from the run's own generator as at any other step, counts the token, and
takes log probabilities before any of it, so what comes after is as if the token had been sampled.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

REPLAYED_ARG = "actserve_replayed"
"""In `SamplingParams.extra_args`: the token ids."""


class Replaying(LogitsProcessor):
    """The logits processor of a worker."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runs: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        """What each run of the batch replays, and vLLM's own list of what it has generated."""
        self._tokens: tuple[torch.Tensor, torch.Tensor] | None = None
        """Rows of the logits, and the token that each must give at this step."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._runs, batch_update, _replayed)
        self._tokens = None
        if not self._runs:
            return
        # Of tokens that vLLM has not fetched from the device it knows at least how many they are.
        left = {row: (ids, done) for row, (ids, done) in self._runs.items() if len(done) < len(ids)}
        self._runs = left
        if left:
            tokens = [ids[len(done)] for ids, done in left.values()]
            self._tokens = self._on_device([*left]), self._on_device(tokens)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self._tokens is not None:
            rows, tokens = self._tokens
            logits[rows] = -float("inf")
            logits[rows, tokens] = 0.0
        return logits

    def _on_device(self, numbers: list[int]) -> torch.Tensor:
        return async_tensor_h2d(numbers, device=self._device, dtype=torch.int64)


def _replayed(
    params: SamplingParams, _: list[int] | None, generated: list[int]
) -> tuple[Sequence[int], Sequence[int]] | None:
    # A run that was preempted comes back with what it has generated.
    ids = (params.extra_args or {}).get(REPLAYED_ARG, ())
    return (ids, generated) if len(ids) > len(generated) else None
