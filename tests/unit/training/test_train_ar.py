"""The AR in training reads a text's last token at the layer of the rows."""

from pathlib import Path

import pytest
import torch

from tests.unit.training.tiny import BLOCKS, LAYER, WIDTH, load
from training import train_ar
from training.train_ar import TrainedReconstructor, reconstruct

PROMPTS = [[11, 12, 13], [14], [15, 16, 17, 18, 19, 20, 21, 22, 23], [24, 25]]


@pytest.fixture
def reconstructor(base: Path) -> TrainedReconstructor:
    torch.manual_seed(0)
    return TrainedReconstructor(load(base)[0], 4, LAYER)


def test_before_training_a_row_is_the_models_own_at_the_end_of_the_text(
    base: Path, reconstructor: TrainedReconstructor
) -> None:
    assert LAYER < BLOCKS - 1
    model, _ = load(base)
    made = reconstruct(reconstructor, PROMPTS, "AR")
    for row, prompt in zip(made, PROMPTS, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(
            torch.from_numpy(row), states[LAYER + 1][0, -1], rtol=1e-4, atol=1e-4
        )


def test_training_lowers_the_error(reconstructor: TrainedReconstructor) -> None:
    rows = torch.randn(len(PROMPTS), WIDTH)
    order = [0, 1, 2, 3] * 100
    error = train_ar.train(
        reconstructor,
        rows[order],
        [PROMPTS[index] for index in order],
        batch=8,
        rate=1e-2,
        head_rate=1e-2,
        seed=0,
        name="AR",
    )
    made = torch.from_numpy(reconstruct(reconstructor, PROMPTS, "AR"))
    cosines = torch.nn.functional.cosine_similarity(made, rows)
    assert error < 0.5
    assert cosines.min() > 0.8
