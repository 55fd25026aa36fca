"""Each method finds what is planted for it, and what is told of it is of examples that it has not
seen."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.probes import Aggregator, RollingMean, ScoreReduction
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.monitors.fit_data import Examples, FitRows, FittedRows, Label, split
from actserve_server.monitors.fitting import FitMethod, Fitted, Recipe, fit

WIDTH = 12
SITES = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(3))


@dataclass
class Counting:
    """Raises after some checks."""

    left: float = float("inf")
    steps: int = field(default=0)

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError

    def step(self) -> None:
        self.steps += 1


def noise(rng: np.random.Generator, tokens: int) -> np.ndarray:
    return (rng.normal(size=(tokens, WIDTH)) + 20).astype(np.float32)


def examples(
    kinds: list[bool], rows: list[tuple[np.ndarray, ...]], fitted: list[np.ndarray] | None = None
) -> Examples:
    counted = [np.ones(len(each[0]), bool) for each in rows]
    return Examples(
        [FitRows(*each) for each in zip(rows, fitted or counted, counted, strict=True)],
        np.array(kinds),
        np.arange(len(kinds)),
        ElementType.F32,
    )


def planted(count: int = 80, tokens: int = 20, size: float = 3.0) -> Examples:
    """A direction in all tokens, at site 1 alone."""
    rng = np.random.default_rng(0)
    kinds = [number % 2 == 0 for number in range(count)]
    rows = []
    for kind in kinds:
        length = tokens + int(rng.integers(5))
        there = noise(rng, length)
        there[:, 3] += size if kind else -size
        rows.append((noise(rng, length), there, noise(rng, length)))
    return examples(kinds, rows)


def recipe(method: FitMethod, **changes: object) -> Recipe:
    usual = Recipe(
        method=method,
        sites=SITES,
        all_sites=False,
        aggregator=method.aggregator,
        hidden_units=16,
        heads=2,
    )
    return replace(usual, **changes)


def fitted(given: Examples, wanted: Recipe, progress: Counting | None = None) -> Fitted:
    labels = [Label(bool(each)) for each in given.is_positive]
    return fit(given, split(labels), wanted, progress or Counting())


@pytest.mark.parametrize("method", FitMethod)
def test_each_method_finds_a_direction_and_the_site_that_has_it(method: FitMethod) -> None:
    wanted, progress = recipe(method), Counting()
    found = fitted(planted(), wanted, progress)
    assert found.network.sites == found.tried[0].sites == (SITES[1],)
    assert {each.sites for each in found.tried} == {(site,) for site in SITES}
    assert found.tried[0].auroc == max(each.auroc for each in found.tried)
    assert found.held_out.auroc > 0.95
    assert (found.held_out.positives, found.held_out.negatives) == (10, 10)
    assert len(found.harmless) == 10
    assert progress.steps == wanted.fits


@pytest.mark.parametrize("method", [FitMethod.LOGISTIC, FitMethod.MEAN_DIFFERENCE])
def test_a_control_with_shuffled_labels_tells_nothing(method: FitMethod) -> None:
    found = fitted(planted(), recipe(method))
    assert found.shuffled.auroc == pytest.approx(0.5, abs=0.1)
    assert found.shuffled.auroc_low < 0.5 < found.shuffled.auroc_high


def test_all_sites_may_be_read_side_by_side() -> None:
    given = planted()
    found = fitted(given, recipe(FitMethod.LOGISTIC, all_sites=True))
    assert found.network.sites == SITES
    assert found.network.values.shape == (1, 3 * WIDTH)
    spread = FittedRows(given, (0, 1, 2)).means().std(axis=0)
    assert (found.network.values[0] * spread).argmax() == WIDTH + 3
    assert found.held_out.auroc == 1
    assert [each.sites for each in found.tried] == [SITES]


def test_the_bias_of_a_mean_difference_is_half_way() -> None:
    given = planted(tokens=40)
    found = fitted(given, recipe(FitMethod.MEAN_DIFFERENCE))
    numbers = [
        float(found.network.apply(given.counted([1], index)).mean()) for index in range(len(given))
    ]
    assert np.mean([each > 0 for each in numbers] == given.is_positive) > 0.97


def test_what_is_said_of_a_span_is_fitted_to_the_span_and_measured_everywhere() -> None:
    """In the rest of each text the direction is turned about."""
    rng = np.random.default_rng(1)
    kinds, rows, spans = [], [], []
    for number in range(80):
        row = noise(rng, 40)
        row[:, 3] -= 2
        span = np.zeros(40, bool)
        span[10:20] = True
        if number % 2:
            row[span, 3] += 4
        kinds.append(number % 2 == 1)
        rows.append((row,))
        spans.append(span)
    how = Aggregator(RollingMean(4), ScoreReduction.MAX)
    wanted = recipe(FitMethod.LOGISTIC, sites=SITES[:1], aggregator=how)
    found = fitted(examples(kinds, rows, spans), wanted)
    assert found.network.values[0].argmax() == 3
    assert found.held_out.auroc == 1


def test_a_hidden_layer_tells_apart_what_no_plane_does() -> None:
    rng = np.random.default_rng(2)
    kinds, rows = [], []
    for _ in range(240):
        signs = rng.choice([-2.0, 2.0], 2)
        row = noise(rng, 8)
        row[:, :2] += signs
        kinds.append(bool(signs[0] * signs[1] > 0))
        rows.append((row,))
    given = examples(kinds, rows)
    assert fitted(given, recipe(FitMethod.MLP, sites=SITES[:1])).held_out.auroc > 0.95
    assert fitted(given, recipe(FitMethod.LOGISTIC, sites=SITES[:1])).held_out.auroc < 0.75


def test_attention_finds_a_few_tokens_in_a_long_text_that_a_mean_overlooks() -> None:
    rng = np.random.default_rng(3)
    kinds, rows = [], []
    for number in range(120):
        row = noise(rng, 200)
        if number % 2:
            start = rng.integers(190)
            row[start : start + 5, 3] += 4
        kinds.append(number % 2 == 1)
        rows.append((row,))
    given = examples(kinds, rows)
    assert fitted(given, recipe(FitMethod.ATTENTION, sites=SITES[:1])).held_out.auroc > 0.95
    assert fitted(given, recipe(FitMethod.LOGISTIC, sites=SITES[:1])).held_out.auroc < 0.8


@pytest.mark.parametrize("method", FitMethod)
def test_equal_examples_give_equal_probes(method: FitMethod) -> None:
    one, other = (fitted(planted(24), recipe(method, sites=SITES[:1])) for _ in range(2))
    np.testing.assert_array_equal(one.network.values, other.network.values)
    assert one.network.bias == other.network.bias
    assert one.held_out.auroc == other.held_out.auroc


@pytest.mark.parametrize("method", FitMethod)
def test_a_fit_that_nobody_wants_any_more_ends_between_two_steps(method: FitMethod) -> None:
    for left in (0, 5, 50):
        with pytest.raises(InterruptedError):
            fitted(planted(24), recipe(method), Counting(left))


@pytest.mark.parametrize("method", [FitMethod.LOGISTIC, FitMethod.MEAN_DIFFERENCE])
def test_examples_that_are_all_the_same_are_refused(method: FitMethod) -> None:
    rows = np.ones((5, WIDTH), np.float32)
    given = examples([number % 2 == 0 for number in range(20)], [(rows,) * 3] * 20)
    with pytest.raises(ActserveError, match="nothing tells") as caught:
        fitted(given, recipe(method))
    assert caught.value.reason is Reason.TENSOR_DEGENERATE
