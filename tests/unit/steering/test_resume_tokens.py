"""A token says which cells its reader has, of its own request alone."""

import random

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.steering.resume_tokens import CellsHad
from actserve_server.steering.sweep_grid import MAX_CELLS

MAX_TOKEN_BYTES = 16 << 10
MANY = random.Random(0).sample(range(MAX_CELLS), MAX_CELLS // 2)


def had(numbers: list[int], cells: int, digest: bytes = b"request") -> CellsHad:
    made = CellsHad(digest, cells)
    for number in numbers:
        made.add(number)
    return made


@pytest.mark.parametrize(
    ("numbers", "cells"),
    [
        ([], 1),
        ([0], 1),
        ([0, 1, 2], 9),
        ([8], 9),
        ([*range(9)], 9),
        ([7, 3, 3, 0], 100),
        ([*range(5000), 5002], 6000),
        ([MAX_CELLS - 1], MAX_CELLS),
        (MANY, MAX_CELLS),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_was_had_comes_back(numbers: list[int], cells: int) -> None:
    token = had(numbers, cells).token()
    assert len(token) <= MAX_TOKEN_BYTES
    again = CellsHad.of(token, b"request", cells)
    assert [number for number in range(cells) if number in again] == sorted({*numbers})
    assert len(again) == len({*numbers})
    assert again.token() == token


def test_cells_in_order_take_a_token_of_some_bytes() -> None:
    assert len(had([*range(60_000), 60_200], MAX_CELLS).token()) < 64


def test_no_token_is_nothing() -> None:
    assert len(CellsHad.of(b"", b"request", 5)) == 0


GOOD = had([0, 1, 9], 20).token()


@pytest.mark.parametrize(
    ("token", "digest", "cells"),
    [
        (GOOD, b"another", 20),
        (GOOD, b"request", 8),
        (GOOD[:-1], b"request", 20),
        (GOOD + b"\1", b"request", 20),
        (GOOD[:20], b"request", 20),
        (b"x", b"request", 20),
        (bytes([GOOD[0] ^ 1]) + GOOD[1:], b"request", 20),
        (bytes(1 << 20), b"request", 20),
    ],
    ids=["digest", "cells", "cut", "longer", "empty", "short", "damaged", "large"],
)
def test_a_token_of_something_else_is_refused(token: bytes, digest: bytes, cells: int) -> None:
    with pytest.raises(ActserveError) as refused:
        CellsHad.of(token, digest, cells)
    assert refused.value.reason is Reason.RESUME_TOKEN_INVALID
    assert refused.value.field == ("resume_token",)
