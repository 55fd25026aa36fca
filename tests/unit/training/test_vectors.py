"""Rows and predictions are those of transformers."""

from pathlib import Path

import pytest
import torch

from tests.unit.training.tiny import BLOCKS, load
from training.models import blocks
from training.vectors import extract


@pytest.mark.parametrize("layer", range(BLOCKS))
def test_rows_and_predictions_are_those_of_transformers(base: Path, layer: int) -> None:
    model, tokenizer = load(base)
    chunks = torch.randint(len(tokenizer), (5, 20)).tolist()
    found = extract(model, chunks, layer, each=4, earliest=6, top=3, seed=1, batch=2)

    seen = {}
    hook = blocks(model)[layer].register_forward_hook(
        lambda module, arguments, output: seen.update(output=output)
    )
    with torch.inference_mode():
        logits = model(torch.tensor(chunks)).logits
    hook.remove()
    at = found.chunk, found.position
    torch.testing.assert_close(found.rows, seen["output"][at], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.next_ids, logits[at].topk(3).indices)


def test_positions_are_distinct_and_not_early(base: Path) -> None:
    model, tokenizer = load(base)
    chunks = torch.randint(len(tokenizer), (6, 12)).tolist()
    found = extract(model, chunks, 0, each=4, earliest=8, top=1, seed=1)
    assert found.position.view(6, 4).tolist() == [[8, 9, 10, 11]] * 6
    assert found.chunk.tolist() == [chunk for chunk in range(6) for _ in range(4)]
