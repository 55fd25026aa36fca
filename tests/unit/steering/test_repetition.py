"""Repetition is the part of the runs of four tokens that came before."""

import pytest

from actserve_server.steering.repetition import repetition


@pytest.mark.parametrize(
    ("token_ids", "part"),
    [
        ([], None),
        ([1, 1, 1, 1], None),
        ([1, 1, 1, 1, 1], 1 / 2),
        ([1, 2, 3, 4, 5], 0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([1] * 103, 99 / 100),
    ],
    ids=str,
)
def test_repetition(token_ids: list[int], part: float | None) -> None:
    assert repetition(token_ids) == part
