"""Rows of all sites come to the host side by side, in pieces that are never large on the device."""

import pytest
import torch

from actserve_server.domain import blocks
from actserve_server.engine.vllm.shipping import copy_together


@pytest.mark.parametrize("block_bytes", [1, 3 * 12, 1 << 20])
def test_columns_are_copied_side_by_side(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    columns = [torch.randint(0, 256, (7, width), dtype=torch.uint8) for width in (8, 4)]
    host = torch.zeros(7, 12, dtype=torch.uint8)
    copy_together(columns, host)
    assert torch.equal(host, torch.cat(columns, dim=1))
