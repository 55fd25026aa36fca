"""Rows of all sites come to the host side by side, in pieces that are never large on the device."""

import numpy as np
import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.engine.vllm.shipping import PROMPT_BYTES, ShippedRows, copy_together


@pytest.mark.parametrize("block_bytes", [1, 3 * 12, 1 << 20])
def test_columns_are_copied_side_by_side(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    columns = [torch.randint(0, 256, (7, width), dtype=torch.uint8) for width in (8, 4)]
    host = torch.zeros(7, 12, dtype=torch.uint8)
    copy_together(columns, host)
    assert torch.equal(host, torch.cat(columns, dim=1))


@pytest.mark.parametrize(
    ("keys", "row_bytes", "of_prompt"),
    [
        ([1] * 8, PROMPT_BYTES // 8, True),
        ([1] * 8, PROMPT_BYTES // 8 - 1, False),
        ([*range(8)], PROMPT_BYTES, False),
        ([0, 1, 2, 3, 3], PROMPT_BYTES, True),
    ],
    ids=["a prompt", "a short prompt", "a step of many runs", "both"],
)
def test_many_rows_of_a_prompt_are_told_from_those_of_a_step(
    keys: list[int], row_bytes: int, of_prompt: bool
) -> None:
    rows = torch.empty(len(keys), row_bytes, dtype=torch.uint8)
    shipped = ShippedRows(0, np.array(keys), np.arange(len(keys)), (rows,))
    assert shipped.of_prompt == of_prompt
