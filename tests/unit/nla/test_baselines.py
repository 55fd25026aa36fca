"""Baselines are measured as the paper does."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla.baselines import check_name, measure
from actserve_server.nla.scores import normalize, score

RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((60, 32)) + 2).astype(np.float32)


def refusal(call: object, *args: object) -> ActserveError:
    assert callable(call)
    with pytest.raises(ActserveError) as caught:
        call(*args)
    return caught.value


def test_variance_and_mean_are_of_normalised_rows() -> None:
    normal = normalize(ROWS).astype(np.float64)
    measured = measure(ROWS)
    assert measured.variance == pytest.approx(normal.var(axis=0).mean(), rel=1e-6)
    assert measured.mean is not None
    assert measured.mean.dtype == np.float32
    np.testing.assert_allclose(measured.mean, normal.mean(axis=0), rtol=1e-5)
    assert measured.rows == 60


def test_two_opposite_rows_have_all_the_variance_there_is() -> None:
    measured = measure(np.array([[3, 4], [-6, -8]], np.float32))
    assert measured.variance == pytest.approx(1)
    assert measured.median_norm == pytest.approx(7.5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_rows_shows_in_the_median_norm_alone(scale: float) -> None:
    plain, scaled = measure(ROWS), measure(ROWS * np.float32(scale))
    assert scaled.variance == pytest.approx(plain.variance, rel=1e-5)
    assert plain.median_norm is not None
    assert scaled.median_norm == pytest.approx(plain.median_norm * scale, rel=1e-5)
    assert plain.median_norm == pytest.approx(np.median(np.linalg.norm(ROWS, axis=1)))


def test_a_small_variance_beside_a_large_mean_is_kept() -> None:
    """As of Gemma, whose rows have a variance of 0.03 and less."""
    rows = np.float32(1000) + RNG.standard_normal((200, 64)).astype(np.float32)
    assert measure(rows).variance == pytest.approx(1e-6, rel=0.05)


def test_shuffled_rows_explain_nothing_on_average() -> None:
    """A reconstruction as far from its row as any other row is explains less than the mean does:
    two independent rows differ by twice the variance."""
    others = np.roll(ROWS, 1, axis=0)
    found = [each.variance_explained for each in score(ROWS, others, measure(ROWS))]
    assert np.mean(np.array(found, np.float64)) == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS[:0], "0 rows have no variance"),
        (ROWS[:1], "1 rows have no variance"),
        (ROWS[[0, 0]], "all 2 rows point the same way"),
        (ROWS[[0] * 7], "all 7 rows point the same way"),
        (np.outer([1, 1e-3, 77, 0.3], ROWS[0]).astype(np.float32), "all 4 rows point the same way"),
    ],
)
def test_rows_without_variance_are_refused(rows: np.ndarray, says: str) -> None:
    refused = refusal(measure, rows)
    assert (refused.reason, refused.field) == (Reason.TENSOR_DEGENERATE, ("activations",))
    assert says in refused.message


@pytest.mark.parametrize("name", ["default", "a", "7", "wikipedia-2", "a--b", "x" * 63])
def test_short_names_are_as_dns_has_them(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-", "-a", "a-", "x" * 64, "A", "a b", "a.b", "a/b", "../a", "é", "a\n", "a" + "٣"],
)
def test_other_names_are_refused(name: str) -> None:
    refused = refusal(check_name, name)
    assert (refused.reason, refused.field) == (Reason.FIELD_INVALID, ("name",))
    assert "1 to 63 lower-case letters, digits and hyphens" in refused.message
