"""Models of scikit-learn as projections. The models here have the attributes of fitted ones, and
the formulas that scikit-learn gives for them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actserve import InvalidRequest, Projection

WIDTH = 9
RANDOM = np.random.default_rng(11)
X = RANDOM.normal(size=(20, WIDTH)) * 5 + 3

Formula = Callable[[np.ndarray], np.ndarray]
Case = tuple[Any, Formula]


def linear(outputs: int | None, intercept: Any = None, **more: Any) -> Case:
    """With one output its coef_ has one axis, as a regressor's, when `outputs` is None."""
    coef = RANDOM.normal(size=(outputs, WIDTH) if outputs else WIDTH)
    if intercept is None:
        intercept = RANDOM.normal(size=outputs or 1)
    model = SimpleNamespace(coef_=coef, intercept_=intercept, **more)
    return model, lambda x: x @ np.atleast_2d(coef).T + intercept


def scaler(with_mean: bool = True, with_std: bool = True) -> Case:
    mean, scale = RANDOM.normal(size=WIDTH) + 3, RANDOM.uniform(0.1, 9, WIDTH)
    model = SimpleNamespace(
        with_mean=with_mean,
        with_std=with_std,
        mean_=mean if with_mean or with_std else None,
        scale_=scale if with_std else None,
        n_features_in_=WIDTH,
    )
    return model, lambda x: (x - (mean if with_mean else 0)) / (scale if with_std else 1)


def pca(components: int, whiten: bool = False, mean: bool = True) -> Case:
    rows = np.linalg.qr(RANDOM.normal(size=(WIDTH, components)))[0].T
    variance, center = RANDOM.uniform(0.5, 20, components), RANDOM.normal(size=WIDTH)
    model = SimpleNamespace(components_=rows, explained_variance_=variance, whiten=whiten)
    if mean:
        model.mean_ = center
    return (
        model,
        lambda x: (x - (center if mean else 0)) @ rows.T / (np.sqrt(variance) if whiten else 1),
    )


def pipeline(*cases: Case) -> Case:
    models, formulas = zip(*cases, strict=True)

    def formula(x: np.ndarray) -> np.ndarray:
        for each in formulas:
            x = each(x)
        return x

    steps = [(f"step {index}", model) for index, model in enumerate(models)]
    return SimpleNamespace(steps=steps), formula


def after_pca(case: Case, components: int) -> Case:
    """The case, of rows that have this many components."""
    coef = RANDOM.normal(size=(2, components))
    case[0].coef_ = coef
    return case[0], lambda x: x @ coef.T + case[0].intercept_


def same(x: np.ndarray) -> np.ndarray:
    return x


class Link:
    """As those of scikit-learn's losses, which have an `inverse`."""

    def __init__(self, inverse: Formula) -> None:
        self.inverse = inverse


def generalized(inverse: Formula, attribute: str = "_base_loss") -> Case:
    """As PoissonRegressor, GammaRegressor and TweedieRegressor are."""
    link = Link(inverse)
    told = {attribute: SimpleNamespace(link=link) if attribute == "_base_loss" else link}
    return linear(None, 0.5, **told)


class PoissonRegressor(SimpleNamespace):
    """One that does not show its link."""


CASES: dict[str, Case] = {
    "a classifier of two classes": linear(1),
    "a classifier of several classes": linear(4),
    "a regressor": linear(None, 0.5),
    "a regressor of several targets": linear(3),
    "a model without an intercept": linear(2, 0.0),
    "a support vector classifier of two classes": linear(1, dual_coef_=np.ones((1, 5))),
    "a PCA": pca(4),
    "a whitened PCA": pca(4, whiten=True),
    "a truncated SVD": pca(3, mean=False),
    "a scaler": scaler(),
    "a pipeline": pipeline(scaler(), linear(1)),
    "a pipeline of many steps": pipeline(scaler(), pca(4, whiten=True), after_pca(linear(2), 4)),
    "a scaler of means alone": pipeline(scaler(with_std=False), linear(3)),
    "a scaler of deviations alone": pipeline(scaler(with_mean=False), linear(3)),
    "a scaler of nothing": pipeline(scaler(with_mean=False, with_std=False), linear(3)),
    "steps that do nothing": pipeline((None, same), ("passthrough", same), linear(2)),
    "a pipeline that ends in a scaler": pipeline(scaler(), scaler()),
    "a pipeline in a pipeline": pipeline(pipeline(scaler(), scaler()), linear(2)),
    "a generalized linear model of no link": generalized(same),
    "a generalized linear model of no link, of an older version": generalized(
        same, "_link_instance"
    ),
    "a search": (lambda case: (SimpleNamespace(best_estimator_=case[0]), case[1]))(
        pipeline(scaler(), linear(2))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_gives_the_components_of_its_own_formula(name: str) -> None:
    model, formula = CASES[name]
    projection = Projection.from_sklearn(model)
    y = X @ np.asarray(projection.directions).T + np.asarray(projection.bias)
    np.testing.assert_allclose(y, formula(X), rtol=1e-5, atol=1e-5)
    assert projection.activation is None


FUNCTION = r"predicts a function of coef_ x \+ intercept_"
REFUSED: dict[str, tuple[Any, str]] = {
    "a model that is not fitted": (SimpleNamespace(C=1.0), "not linear, not fitted, or not known"),
    "a factorization that is not linear": (
        SimpleNamespace(components_=np.ones((2, WIDTH))),
        "not linear, not fitted",
    ),
    "a scaler of another kind": (
        SimpleNamespace(scale_=np.ones(WIDTH), min_=np.ones(WIDTH)),
        "not linear, not fitted",
    ),
    "a partial least squares": (
        linear(1, x_rotations_=np.ones((WIDTH, 1)))[0],
        "centers rows before its coef_",
    ),
    "a novelty detector": (linear(1, offset_=0.5)[0], "an offset of its own"),
    "pairs of classes": (linear(3, dual_coef_=np.ones((2, 5)))[0], "pairs of classes, which vote"),
    "a linear model before the end": (
        pipeline(linear(1), linear(1))[0],
        "the last step of a pipeline or none",
    ),
    "a log link": (generalized(np.exp)[0], FUNCTION),
    "a log link of an older version": (generalized(np.exp, "_link_instance")[0], FUNCTION),
    "a link that is not shown": (PoissonRegressor(coef_=np.ones(WIDTH)), FUNCTION),
    "a pipeline that ends in a log link": (pipeline(scaler(), generalized(np.exp))[0], FUNCTION),
    "a search of a log link": (
        SimpleNamespace(best_estimator_=generalized(np.exp)[0]),
        FUNCTION,
    ),
    "an empty pipeline": (SimpleNamespace(steps=[("a", "passthrough")]), "no step that does"),
    "an array": (np.ones(WIDTH), r"a model ndarray of shape \[9\] cannot"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_linear_is_refused_with_the_reason(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message) as caught:
        Projection.from_sklearn(model)
    assert caught.value.field == "model"


def test_sparse_coefficients_are_taken_whole() -> None:
    coef = RANDOM.normal(size=(2, WIDTH))
    sparse = SimpleNamespace(toarray=lambda: coef)
    projection = Projection.from_sklearn(SimpleNamespace(coef_=sparse, intercept_=[1, 2]))
    np.testing.assert_array_equal(np.asarray(projection.directions), coef.astype(np.float32))


def test_a_client_reads_what_a_probe_says(client: Any) -> None:
    probe = SimpleNamespace(coef_=[[0, 0, 2, 0]], intercept_=[-1])
    acts = client.fetch("a b c", "resid_post.1", projection=Projection.from_sklearn(probe))
    assert acts["resid_post.1"].tolist() == [[-1], [1], [3]]
