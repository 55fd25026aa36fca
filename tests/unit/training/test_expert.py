"""Of what the AV wrote, the AV learns the best and the AR all."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from training import expert
from training.expert import Attempts, best
from training.prompts import Words
from training.recipe import Recipe

ROWS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
MEANT = {
    "x": [1.0, 0.1, 0.0],
    "y": [0.0, 1.0, 0.1],
    "z": [0.0, 0.1, 1.0],
    "xy": [1.0, 1.0, 0.1],
}
WORDS = cast(Words, SimpleNamespace(prompt=lambda text: [text]))


def test_the_best_attempt_is_the_one_that_the_row_is_reconstructed_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expert, "reconstruct", _reconstruct)
    attempts = Attempts(ROWS, [["z", "x", "xy"], [], ["x", "z"], ["y", "xy", "x"]])
    rows, texts = best(cast(Any, None), attempts, WORDS, "best")
    assert texts == ["x", "z", "xy"]
    assert torch.equal(rows, ROWS[[0, 2, 3]])


def _reconstruct(model: object, prompts: list[list[str]], name: str) -> np.ndarray:
    return np.array([MEANT[text] for (text,) in prompts], np.float32)


def test_attempts_come_flat_with_their_rows() -> None:
    attempts = Attempts(ROWS[:3], [["a", "b"], [], ["c"]])
    assert attempts.flat == ([0, 0, 2], ["a", "b", "c"])


def test_attempts_are_kept_whole(tmp_path: Path) -> None:
    Attempts(ROWS[:3], [["a", "b"], [], ["c"]]).save(tmp_path / "kept.json")
    assert json.loads((tmp_path / "kept.json").read_text()) == [["a", "b"], [], ["c"]]
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_a_round_without_any_explanation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert, "sample", lambda *_, **__: [[[1], [2]]] * len(ROWS))
    words = cast(Words, SimpleNamespace(end=0, explanation=lambda answer: ("Topic: to", False)))
    recipe = Recipe(base="tiny", layer=1, marker="x", samples=2, av_examples=10)
    with pytest.raises(ValueError, match=r"none of 2 explanations of 4 rows.* more than 10"):
        expert.attempt(cast(Any, None), ROWS, words, recipe, seed=0, name="attempts")
