"""Retrieval tells an explanation of its row from one that fits every row."""

import numpy as np
import pytest

from training.evaluate import CANDIDATES, retrieval

GENERATOR = np.random.default_rng(0)
MEAN = np.full(16, 0.5, np.float32)
GOLDS = (MEAN + 0.2 * GENERATOR.standard_normal((2 * CANDIDATES + 5, 16))).astype(np.float32)


@pytest.mark.parametrize(
    ("made", "share"),
    [
        (3 * GOLDS, 1.0),
        (np.roll(GOLDS, 1, axis=0), 0.0),
        (np.broadcast_to(GOLDS[0], GOLDS.shape), 1 / CANDIDATES),
    ],
    ids=["its own", "its neighbour's", "one for all"],
)
def test_retrieval_is_the_share_nearest_to_their_own_row(made: np.ndarray, share: float) -> None:
    assert retrieval(GOLDS, made, MEAN) == share


def test_fewer_rows_are_one_group() -> None:
    assert retrieval(GOLDS[:10], GOLDS[:10], MEAN) == 1.0
