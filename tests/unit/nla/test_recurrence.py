"""Claims recur in the explanations of positions nearby."""

import random
from dataclasses import replace

import pytest

from actserve_server.domain.runs import FinishReason
from actserve_server.nla.explanations import Claim, Explanation
from actserve_server.nla.recurrence import with_recurrence


def _explanation(position: int | None, text: str, sample: int = 0) -> Explanation:
    return Explanation(
        row=position or 0,
        sample=sample,
        text=text,
        finish_reason=FinishReason.STOP,
        output_tokens=1,
        injections=1,
        norm=1.0,
        position=position,
        claims=(Claim(start=0, end=len(text)),),
    )


HERE = _explanation(10, "Roses bloom")


@pytest.mark.parametrize(
    ("others", "distance", "expected"),
    [
        ([_explanation(11, "Roses")], 1, 0.5),
        ([_explanation(9, "Roses"), _explanation(11, "Nothing alike")], 1, 0.25),
        ([_explanation(12, "Roses bloom")], 1, None),
        ([_explanation(12, "Roses bloom")], 2, 1.0),
        ([_explanation(12, "Roses bloom")], 1 << 40, 1.0),
        ([_explanation(11, "Roses"), _explanation(11, "Roses bloom", sample=1)], 1, 0.75),
        ([_explanation(10, "Roses bloom", sample=1)], 3, None),
        ([_explanation(None, "Roses bloom")], 3, None),
    ],
)
def test_it_is_the_mean_over_neighbours_of_what_they_share(
    others: list[Explanation], distance: int, expected: float | None
) -> None:
    found = with_recurrence([HERE, *others], distance)[0]
    assert found == replace(HERE, claims=(replace(HERE.claims[0], recurrence=expected),))


def test_explanations_without_a_position_stay_as_they_are() -> None:
    placeless = _explanation(None, "Roses")
    assert with_recurrence([placeless, HERE], 5)[0] is placeless


def test_every_distance_finds_the_same_neighbours_as_looking_at_each() -> None:
    words = ("rose", "tulip", "river", "stone", "cloud")
    draw = random.Random(0)
    all_ = [
        _explanation(draw.randrange(40), " ".join(draw.sample(words, 3)), sample)
        for sample in range(60)
    ]
    for distance in (1, 3, 17, 100):
        for each, found in zip(all_, with_recurrence(all_, distance), strict=True):
            assert each.position is not None
            shares = [
                len(set(each.text.split()) & set(other.text.split())) / 3
                for other in all_
                if other.position is not None
                and 0 < abs(other.position - each.position) <= distance
            ]
            (claim,) = found.claims
            expected = sum(shares) / len(shares) if shares else None
            assert claim.recurrence == (None if expected is None else pytest.approx(expected))
