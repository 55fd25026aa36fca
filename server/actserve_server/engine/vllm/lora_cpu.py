"""The products of LoRA adapters on CPUs, in place of vLLM's.

vLLM 0.32 gathers the matrices of every token there: gigabytes for a prompt of a larger model. And
where a step has tokens with an adapter and others without, its index of none, -1, is that of the
last adapter, by which the others are changed. Here the tokens of a step are taken together by
adapter, and those without one are left alone.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


class GroupedProducts(PunicaWrapperCPU):
    """By adapter, for all the layers of a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[tuple[int, torch.Tensor]] = []
        """The slot of an adapter, and which of the step's tokens have it."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices
        self._groups = [
            (slot, torch.nonzero(slots == slot)[:, 0])
            for slot in torch.unique(slots).tolist()
            if slot >= 0
        ]

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Adds what adapters make of `x`, [tokens, inputs], to `y`, [tokens, outputs], of which
        each pair of matrices has a slice. Computed in float32, and rounded as it is added."""
        for slot, tokens in self._groups:
            read = x[tokens].float()
            start = 0
            for down, up, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = read @ down[slot, 0].float().T
                made = (low @ up[slot, 0, :width].float().T).mul_(scale)
                y[tokens, start : start + width] += made.to(y.dtype)
                start += width


def install() -> None:
    """Has vLLM make its layers with these in this process."""
    name = f"{__name__}.{GroupedProducts.__qualname__}"
    current_platform.get_punica_wrapper = lambda: name  # type: ignore[method-assign]
