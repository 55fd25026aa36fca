"""Selectors become absolute positions, as the contract says."""

import itertools
import random

import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import (
    NO_END,
    AllPositions,
    GeneratedPositions,
    LastPosition,
    PositionList,
    PositionRange,
    Positions,
    PromptPositions,
    Spans,
    resolve,
)

PROMPT, RUN = 5, 8
"""5 prompt tokens and 4 generated ones, so activations at 0 to 7."""


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        (AllPositions(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (LastPosition(), [4]),
        (PromptPositions(), [0, 1, 2, 3, 4]),
        (GeneratedPositions(), [5, 6, 7]),
        (PositionList((6, 0, -1)), [0, 4, 6]),
        (PositionRange(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (PositionRange(2, 4), [2, 3]),
        (PositionRange(-2), [3, 4, 5, 6, 7]),
        (PositionRange(None, -3), [0, 1]),
        (PositionRange(-99, 1), [0]),
        (PositionRange(6, 99), [6, 7]),
    ],
    ids=str,
)
def test_a_selector_resolves(selector: Positions, positions: list[int]) -> None:
    spans = resolve(selector, PROMPT, RUN, "positions")
    assert spans.within(0, RUN).tolist() == positions
    assert spans.count(RUN) == len(positions)


@pytest.mark.parametrize(
    "selector",
    [
        PositionList(()),
        PositionList((8,)),
        PositionList((-6,)),
        PositionList((4, -1)),
        PositionList((2, 2)),
        PositionRange(3, 3),
        PositionRange(4, 2),
        PositionRange(8),
        PositionRange(None, 0),
        PositionRange(None, -5),
    ],
    ids=str,
)
def test_a_selector_of_nothing_or_of_what_is_not_there_is_refused(selector: Positions) -> None:
    with pytest.raises(ActserveError) as caught:
        resolve(selector, PROMPT, RUN, "capture.positions")
    assert caught.value.reason is Reason.POSITION_OUT_OF_RANGE
    assert caught.value.field == "capture.positions"


@pytest.mark.parametrize("seed", range(50))
def test_spans_hold_exactly_their_positions(seed: int) -> None:
    rng = random.Random(seed)
    positions = {rng.randrange(60) for _ in range(rng.randrange(40))}
    spans = Spans.of(positions)
    assert spans.within(0, NO_END).tolist() == sorted(positions)
    for start, end in itertools.combinations(range(0, 70, 3), 2):
        expected = sorted(p for p in positions if start <= p < end)
        assert spans.within(start, end).tolist() == expected
        assert spans.count(end) == len([p for p in positions if p < end])
    assert all(low < high for low, high in spans.ranges)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans.ranges))


@pytest.mark.parametrize("start", [None, *range(-12, 13)])
def test_a_range_is_a_python_slice_of_the_sequence(start: int | None) -> None:
    sequence = list(range(RUN))
    for end in [None, *range(-12, 13)]:
        # A bound from the end counts from the end of the prompt, whatever was generated.
        low, high = (
            max(0, bound + PROMPT) if bound is not None and bound < 0 else bound
            for bound in (start, end)
        )
        try:
            spans = resolve(PositionRange(start, end), PROMPT, RUN, "")
        except ActserveError:
            assert sequence[low:high] == []
        else:
            assert spans.within(0, RUN).tolist() == sequence[low:high]
