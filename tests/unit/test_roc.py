"""What is told of how well scores tell two kinds apart."""

import numpy as np
import pytest

from actserve_server.domain.roc import auroc


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([2, 3], [0, 1], 1),
        ([0, 1], [2, 3], 0),
        ([1, 1], [1, 1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([1, 2], [1, 0], (0.5 + 1 + 1 + 1) / 4),
    ],
)
def test_the_area_is_the_chance_of_being_above_with_ties_counted_half(
    positive: list[float], negative: list[float], area: float
) -> None:
    assert auroc(np.array(positive), np.array(negative)) == area
