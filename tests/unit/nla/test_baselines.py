"""Baselines are measured as the paper does, and found again by name."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.nla.baselines import (
    MAX_BASELINES,
    MAX_BASELINES_OF_ALL,
    BaselineStore,
    measure,
)
from actserve_server.nla.profile import Baseline
from actserve_server.nla.scores import normalize, score

RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((60, 32)) + 2).astype(np.float32)
OWN = Baseline(variance=0.7335)


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


def test_what_the_checkpoint_says_is_the_default() -> None:
    store = BaselineStore(OWN)
    assert store.get("") is store.get("default") is OWN
    assert dict(store.all()) == {"default": OWN}


def test_without_a_default_no_name_means_no_baseline() -> None:
    store = BaselineStore()
    store.measure("mine", ROWS)
    assert store.get("") is None
    assert refusal(store.get, "default").reason is Reason.BASELINE_NOT_FOUND


@pytest.mark.parametrize("own", [OWN, None])
@pytest.mark.parametrize("name", ["default", "a", "7", "wikipedia-2", "a--b", "x" * 63])
def test_a_measured_baseline_takes_the_place_of_any_of_its_name(
    name: str, own: Baseline | None
) -> None:
    store = BaselineStore(own)
    store.measure(name, ROWS[:30])
    measured = store.measure(name, ROWS)
    assert measured.rows == 60
    assert store.get(name) is store.all()[name] is measured


@pytest.mark.parametrize(
    "name",
    ["", "-", "-a", "a-", "x" * 64, "A", "a b", "a.b", "a/b", "../a", "é", "a\n", "a" + "٣"],
)
def test_other_names_are_refused(name: str) -> None:
    store = BaselineStore(OWN)
    refused = refusal(store.measure, name, ROWS)
    assert (refused.reason, refused.field) == (Reason.FIELD_INVALID, ("name",))
    assert "1 to 63 lower-case letters, digits and hyphens" in refused.message
    assert dict(store.all()) == {"default": OWN}


def test_an_unknown_baseline_is_refused_with_those_that_are_there() -> None:
    store = BaselineStore(OWN)
    store.measure("wikipedia", ROWS)
    refused = refusal(store.get, "gutenberg", ("spec", "baseline"))
    assert (refused.reason, refused.field) == (Reason.BASELINE_NOT_FOUND, ("spec", "baseline"))
    assert "'gutenberg'" in refused.message
    assert "default, wikipedia" in refused.message
    assert refused.metadata["resource_name"] == "gutenberg"


def test_no_more_are_kept_than_the_limit_but_those_can_be_replaced() -> None:
    store = BaselineStore(OWN)
    for number in range(MAX_BASELINES - 1):
        store.measure(f"b{number}", ROWS[:2])
    refused = refusal(store.measure, "one-more", ROWS)
    assert (refused.reason, refused.field) == (Reason.FIELD_INVALID, ("name",))
    assert f"{MAX_BASELINES} baselines" in refused.message
    assert "delete one of them, or measure one anew" in refused.message
    assert store.measure("b0", ROWS) is store.get("b0")
    assert len(store.all()) == MAX_BASELINES


def test_what_cannot_be_measured_replaces_nothing() -> None:
    store = BaselineStore(OWN)
    refusal(store.measure, "default", ROWS[:1])
    assert store.get("") is OWN


def test_a_tenant_measures_for_itself() -> None:
    store = BaselineStore(OWN)
    mine = store.measure("default", ROWS, "mine")
    theirs = store.measure("default", ROWS[:30], "theirs")
    store.measure("other", ROWS, "theirs")
    assert (store.get("", tenant="mine"), store.get("", tenant="theirs")) == (mine, theirs)
    assert store.get("", tenant="third") is OWN
    assert dict(store.all("mine")) == {"default": mine}
    refused = refusal(store.get, "other", "baseline", "mine")
    unknown = refusal(store.get, "never", "baseline", "mine")
    assert refused.message == unknown.message.replace("never", "other")


def test_what_is_measured_for_all_is_seen_by_those_who_have_none_of_its_name() -> None:
    store = BaselineStore(OWN)
    mine = store.measure("wikipedia", ROWS[:30], "mine")
    shared = store.measure("wikipedia", ROWS, "operator", shared=True)
    assert store.get("wikipedia", tenant="mine") is mine
    assert store.get("wikipedia", tenant="theirs") is store.get("wikipedia") is shared


def test_over_all_tenants_no_more_are_kept_than_the_limit() -> None:
    store = BaselineStore(OWN)
    for number in range(MAX_BASELINES_OF_ALL):
        store.measure(f"b{number % 16}", ROWS[:2], f"t{number // 16}")
    refused = refusal(store.measure, "one-more", ROWS, "late")
    assert refused.metadata == {"limit": str(MAX_BASELINES_OF_ALL)}
    store.measure("b0", ROWS, "t0")
