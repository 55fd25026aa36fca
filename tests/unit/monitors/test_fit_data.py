"""Examples are parted the same way each time, groups whole, and each part has both kinds."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.fit_data import Label, Split, split


def labels(positives: int, negatives: int) -> list[Label]:
    return [Label(number < positives) for number in range(positives + negatives)]


def parts(found: Split) -> list[np.ndarray]:
    return [found.train, found.set_aside, found.held_out]


@pytest.mark.parametrize(("positives", "negatives"), [(4, 4), (32, 32), (100, 11), (4, 1000)])
def test_a_quarter_is_held_out_and_a_quarter_of_the_rest_set_aside_of_each_kind(
    positives: int, negatives: int
) -> None:
    given = labels(positives, negatives)
    found = split(given)
    every = np.concatenate(parts(found))
    assert sorted(every) == list(range(positives + negatives))
    for kind, count in ((True, positives), (False, negatives)):
        have = [sum(given[n].positive is kind for n in part) for part in parts(found)]
        assert min(have) >= 1
        assert abs(have[2] - count / 4) <= 1
        assert abs(have[1] - count * 3 / 16) <= 1


def test_it_is_the_same_each_time_and_not_by_order() -> None:
    found, again = split(labels(32, 32)), split(labels(32, 32))
    for one, other in zip(parts(found), parts(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.diff(found.held_out).max() > 1


def test_groups_are_whole_whatever_kinds_they_mix() -> None:
    rng = np.random.default_rng(0)
    given = [Label(bool(rng.integers(2)), f"chat {rng.integers(20)}") for _ in range(200)]
    found = split(given)
    of = [{given[n].group for n in part} for part in parts(found)]
    assert len(of[0] | of[1] | of[2]) == sum(map(len, of))
    assert 30 < len(found.held_out) < 70
    assert all(len({given[n].positive for n in part}) == 2 for part in parts(found))


def test_groups_that_are_large_are_parted_all_the_same() -> None:
    given = [Label(kind, f"{kind} {number % 3}") for kind in (True, False) for number in range(24)]
    assert [len(part) for part in parts(split(given))] == [16, 16, 16]


def test_an_example_without_a_group_is_in_none_whatever_others_are_called() -> None:
    given = [Label(number % 2 == 0, "0" if number > 5 else "") for number in range(12)]
    assert len(np.unique(split(given).groups)) == 7


@pytest.mark.parametrize("kind", [True, False])
def test_too_few_groups_of_a_kind_are_refused(kind: bool) -> None:
    given = [Label(kind, f"author {number % 2}") for number in range(20)]
    given += [Label(not kind) for _ in range(20)]
    with pytest.raises(ActserveError, match="of 2 groups") as caught:
        split(given)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert ("positive" if kind else "negative") in caught.value.message
