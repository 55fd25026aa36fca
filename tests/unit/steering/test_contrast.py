"""The direction in which rows of two kinds differ is what its method's definition says."""

import numpy as np
import pytest

from actserve_server.steering.contrast import Examples, direction
from actserve_server.steering.stored_vectors import Method

WIDTH = 24


def examples(pairs: int = 40, width: int = WIDTH, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """Noisy pairs that differ along a unit vector, and this; far from zero, as a stream is."""
    rng = np.random.default_rng(seed)
    along = rng.normal(size=width)
    along /= np.linalg.norm(along)
    base = rng.normal(size=(pairs, width)) + 30 * rng.normal(size=width)
    noise = rng.normal(size=(2, pairs, width)) / 4
    return Examples(
        (base + along + noise[0]).astype(np.float32), (base - along + noise[1]).astype(np.float32)
    ), along


def loss(rows: np.ndarray, signs: np.ndarray, weights: np.ndarray, bias: float) -> float:
    return np.logaddexp(0, -signs * (rows @ weights + bias)).sum() + weights @ weights / 2


def test_the_mean_difference_is_that_of_the_means() -> None:
    given, _ = examples()
    wanted = given.positive.mean(axis=0, dtype=np.float64) - given.negative.mean(
        axis=0, dtype=np.float64
    )
    np.testing.assert_allclose(direction(given, Method.MEAN_DIFFERENCE), wanted, rtol=1e-12)


@pytest.mark.parametrize("pairs", [1, 5, WIDTH, 40])
def test_pca_finds_the_unit_vector_along_which_differences_are_largest(pairs: int) -> None:
    given, _ = examples(pairs)
    found = direction(given, Method.PCA)
    differences = given.positive.astype(np.float64) - given.negative
    largest = np.linalg.svd(differences, compute_uv=False)[0]
    assert np.linalg.norm(found) == pytest.approx(1)
    assert np.linalg.norm(differences @ found) == pytest.approx(largest, rel=1e-9)
    assert (differences @ found).mean() > 0


def test_pca_finds_what_all_pairs_share_which_about_the_mean_would_vanish() -> None:
    given, along = examples()
    assert direction(given, Method.PCA) @ along > 0.97


def test_pca_does_not_depend_on_which_of_a_pair_comes_first_but_for_the_sign() -> None:
    given, _ = examples()
    exchanged = Examples(given.negative, given.positive)
    np.testing.assert_allclose(
        direction(exchanged, Method.PCA), -direction(given, Method.PCA), atol=1e-12
    )


@pytest.mark.parametrize("width", [6, WIDTH, 200], ids=["narrow", "wide", "wider than many"])
def test_the_regression_finds_the_least_loss_for_rows_of_unit_variance(width: int) -> None:
    given, _ = examples(width=width)
    scales = np.logspace(-3, 3, width).astype(np.float32)
    given = Examples(given.positive * scales, given.negative * scales)
    rows = np.concatenate([given.positive, given.negative]).astype(np.float64)
    signs = np.repeat([1.0, -1.0], 40)
    deviations = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / deviations
    found = direction(given, Method.LOGISTIC_REGRESSION)
    assert np.linalg.norm(found) == pytest.approx(1)
    # In the space of scaled rows it must be along weights at which the gradient vanishes. Their
    # length is found by bisection, since the norm is not told.
    weights = found * deviations
    weights /= np.linalg.norm(weights)

    def slope(length: float) -> tuple[float, np.ndarray]:
        wrong = 1 / (1 + np.exp(signs * (rows @ weights * length)))
        gradient = rows.T @ (-signs * wrong) + length * weights
        return float(gradient @ weights), gradient

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle)[0] < 0 else (low, middle)
    # Both kinds are as many, and centred: but for their noise the bias is zero.
    rest = np.linalg.norm(slope(low)[1]) / np.linalg.norm(slope(0.0)[1])
    assert rest < 0.02


def test_the_regression_is_where_no_step_leads_down() -> None:
    """The same with the bias, by trying: rows that two planes can tell apart, and unequal kinds."""
    rng = np.random.default_rng(1)
    given = Examples(rng.normal(size=(30, 3)) + np.array([1, 0, 0]), rng.normal(size=(12, 3)))
    rows = np.concatenate([given.positive, given.negative])
    deviations = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / deviations
    signs = np.repeat([1.0, -1.0], [30, 12])
    found = direction(given, Method.LOGISTIC_REGRESSION) * deviations
    found /= np.linalg.norm(found)
    grid = [(length, bias) for length in np.linspace(0, 4, 161) for bias in np.linspace(-2, 2, 161)]
    length, bias = min(grid, key=lambda at: loss(rows, signs, found * at[0], at[1]))
    least = loss(rows, signs, found * length, bias)
    for step in rng.normal(size=(200, 3)) * 0.2:
        assert loss(rows, signs, found * length + step, bias) > least - 2e-3


def test_a_column_that_does_not_vary_has_no_weight() -> None:
    given, _ = examples()
    for rows in (given.positive, given.negative):
        rows[:, 3] = 1000
        rows[::2, 4] = np.nextafter(np.float32(500), np.float32(501))
        rows[1::2, 4] = 500
    found = direction(given, Method.LOGISTIC_REGRESSION)
    assert found[3] == found[4] == 0
    assert np.linalg.norm(found) == pytest.approx(1)


@pytest.mark.parametrize("method", Method)
def test_rows_that_are_the_same_show_no_direction(method: Method) -> None:
    rows = examples()[0].positive
    assert not direction(Examples(rows, rows), method).any()


@pytest.mark.parametrize("method", [Method.MEAN_DIFFERENCE, Method.LOGISTIC_REGRESSION])
def test_nor_do_they_in_another_order_or_twice(method: Method) -> None:
    rows = examples()[0].positive
    assert not direction(Examples(rows, rows[::-1]), method).any()
    assert not direction(Examples(rows, np.concatenate([rows, rows[::-1]])), method).any()


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("pairs", [1, 2, 40])
def test_the_same_rows_give_the_same_bits(method: Method, pairs: int) -> None:
    given, _ = examples(pairs)
    np.testing.assert_array_equal(direction(given, method), direction(given, method))


@pytest.mark.parametrize("method", Method)
def test_every_method_finds_what_tells_the_kinds_apart(method: Method) -> None:
    given, along = examples(200)
    found = direction(given, method)
    assert found @ along / np.linalg.norm(found) > 0.9


def test_parts_have_their_share_of_each_kind_and_keep_pairs_together() -> None:
    rows = np.arange(7.0)[:, None]
    given = Examples(rows, rows[:6] + 100)
    parts = [given.part(number, 3) for number in range(3)]
    assert [each.positive.ravel().tolist() for each in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [each.negative.ravel().tolist() for each in parts] == [
        [100, 103],
        [101, 104],
        [102, 105],
    ]
    others = given.part(0, 3, without=True)
    assert others.positive.ravel().tolist() == [1, 2, 4, 5]
    assert others.negative.ravel().tolist() == [101, 102, 104, 105]


def test_the_median_norm_is_that_of_all_rows() -> None:
    given = Examples(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[6.0, 8.0]]))
    assert given.median_norm() == 5
