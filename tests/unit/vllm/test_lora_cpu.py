"""Each token of a step gets the products of its own adapter, and one without an adapter none."""

import pytest
import torch
from vllm.lora.layers import LoRAMapping

from actserve_server.engine.vllm.lora_cpu import GroupedProducts

TOKENS, INPUTS, RANK = 9, 6, 3
SLICES = (4, 2)
"""Outputs of a layer that is packed of two."""
SLOTS: list[int | None] = [11, 22]
"""The ids of the adapters in them."""


def of_tokens(*ids: int) -> GroupedProducts:
    made = GroupedProducts(TOKENS, TOKENS, "cpu")
    mapping = LoRAMapping(ids, (0,), is_prefill=True)
    made.update_metadata(mapping, SLOTS, len(SLOTS) + 1, 100)
    return made


@pytest.mark.parametrize(
    "ids",
    [
        [0] * TOKENS,
        [22] * TOKENS,
        [11, 11, 0, 0, 22, 0, 11, 22, 22],
        [22, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_each_token_s_adapter(ids: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, y = numbers(TOKENS, INPUTS), numbers(TOKENS, sum(SLICES))
    down = tuple(numbers(len(SLOTS), 1, RANK, INPUTS) for _ in SLICES)
    up = tuple(numbers(len(SLOTS), 1, width, RANK) for width in SLICES)
    wanted = y.double()
    for token, adapter in enumerate(ids):
        if adapter:
            slot = SLOTS.index(adapter)
            parts = [
                b[slot, 0].double() @ (a[slot, 0].double() @ x[token].double())
                for a, b in zip(down, up, strict=True)
            ]
            wanted[token] += torch.cat(parts)
    before = y.clone()
    of_tokens(*ids).add_lora_linear(y, x, down, up, 1.0, SLICES)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=tolerance)
    without = [token for token, adapter in enumerate(ids) if not adapter]
    assert torch.equal(y[without], before[without])
