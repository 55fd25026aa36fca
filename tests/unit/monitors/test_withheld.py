"""What a watched sample may not tell yet waits without being looked at, and is told once it may
be."""

from typing import Any

import numpy as np
import pytest

from actserve_server.domain.runs import Rows, Tokens
from actserve_server.monitors import withheld
from actserve_server.monitors.withheld import Withheld

PROMPT = 40
SITES = 50


def rows(site: int, *positions: int) -> Rows:
    return Rows(0, site, np.array(positions), np.zeros((len(positions), 1), np.uint16))


def token(position: int) -> Tokens:
    return Tokens(position, (1,), ("a",), "a")


def places(told: Any) -> list[tuple[int, int]]:
    """Site and position of each row that is told."""
    return [
        (each.site_index, position)
        for each in told
        if isinstance(each, Rows)
        for position in each.positions.tolist()
    ]


def test_rows_of_a_long_prompt_are_looked_at_as_they_come_and_when_they_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    search = np.searchsorted

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        return search(*args, **options)

    monkeypatch.setattr(withheld.np, "searchsorted", counting)
    held = Withheld(PROMPT)
    wanted = [(site, position) for position in range(PROMPT) for site in range(SITES)]
    for site, position in wanted:
        held.add(rows(site, position))
        assert not [*held.release(PROMPT)]
    held.add(token(PROMPT))
    assert places(held.release(PROMPT + 1)) == wanted
    assert looks <= 2 * len(wanted)


def test_a_row_that_comes_after_its_token_was_told_is_told_at_once() -> None:
    held = Withheld(PROMPT)
    held.add(token(PROMPT))
    assert [*held.release(PROMPT + 1)] == [token(PROMPT)]
    held.add(rows(0, PROMPT - 2, PROMPT - 1, PROMPT))
    assert places(held.release(PROMPT + 1)) == [(0, PROMPT - 2), (0, PROMPT - 1)]
    held.add(token(PROMPT + 1))
    assert places(held.release(PROMPT + 2)) == [(0, PROMPT)]
    held.go_back()
    held.add(rows(0, PROMPT, PROMPT + 1))
    assert places(held.release_all(PROMPT + 2)) == [(0, PROMPT + 1)]
