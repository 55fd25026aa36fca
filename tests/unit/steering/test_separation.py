"""What is told of a direction is of examples that it was not made of."""

import numpy as np
import pytest

from actserve_server.domain.roc import auroc
from actserve_server.steering.contrast import Examples, direction
from actserve_server.steering.separation import ranking, separation
from actserve_server.steering.stored_vectors import Method, Separation


def noise(count: int = 60, width: int = 300, seed: int = 2) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(count, width)), rng.normal(size=(count, width)))


NOISE = [noise(seed=seed) for seed in range(20)]


@pytest.mark.parametrize("method", [Method.MEAN_DIFFERENCE, Method.LOGISTIC_REGRESSION])
def test_its_own_examples_a_direction_of_noise_tells_apart(method: Method) -> None:
    for given in NOISE:
        learned = direction(given, method)
        assert auroc(given.positive @ learned, given.negative @ learned) > 0.9


@pytest.mark.parametrize("method", Method)
def test_others_it_tells_apart_no_better_than_by_chance(method: Method) -> None:
    every = [separation(given, method) for given in NOISE]
    assert np.mean([each.held_out_auroc or 0 for each in every]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([each.half_cosine or 0 for each in every]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("method", Method)
def test_what_differs_clearly_is_told_apart_and_found_in_either_half(method: Method) -> None:
    given = noise(width=20)
    given.positive[:, 0] += 8
    found = separation(given, method)
    assert (found.held_out_auroc or 0) > 0.99
    assert (found.half_cosine or 0) > 0.4


@pytest.mark.parametrize(
    ("positives", "negatives", "told"),
    [
        (1, 9, (False, False)),
        (9, 1, (False, False)),
        (2, 2, (True, False)),
        (3, 9, (True, False)),
        (4, 4, (True, True)),
    ],
)
@pytest.mark.parametrize("method", [Method.MEAN_DIFFERENCE, Method.LOGISTIC_REGRESSION])
def test_too_few_examples_tell_nothing(
    positives: int, negatives: int, told: tuple[bool, bool], method: Method
) -> None:
    given = noise(9, 4)
    given = Examples(given.positive[:positives], given.negative[:negatives])
    found = separation(given, method)
    assert (found.held_out_auroc is not None, found.half_cosine is not None) == told


def test_a_half_without_a_direction_has_no_cosine() -> None:
    same = np.ones((4, 3))
    given = Examples(same + [[0, 0, 0], [0, 0, 1]] * 2, same)
    assert separation(given, Method.MEAN_DIFFERENCE).half_cosine is None


def test_the_best_comes_first_and_what_is_not_known_last() -> None:
    every = [
        Separation(held_out_auroc=0.5, half_cosine=0.9),
        None,
        Separation(held_out_auroc=0.9, half_cosine=0.1),
        Separation(held_out_auroc=0.9, half_cosine=0.2),
        Separation(held_out_auroc=0.9, half_cosine=None),
        Separation(held_out_auroc=0.9, half_cosine=0.2),
    ]
    assert ranking(every) == [3, 5, 2, 4, 0, 1]
