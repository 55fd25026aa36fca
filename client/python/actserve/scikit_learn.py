"""scikit-learn: linear models, and what scales and rotates rows before them, as projections.

All of these are affine: A x + c. A pipeline of them is one such map, worked out in float64. Only
the attributes of fitted models are read; scikit-learn itself is not needed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.projections import Projection

_Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A [directions, width] and c [directions]."""


_LOG_LINKS = ("PoissonRegressor", "GammaRegressor", "TweedieRegressor")
"""Those that have, or may have, a link, where they do not show it."""
_VALUES = np.array([-2.0, 0.5, 3.0])
"""That no link leaves as they are but the identity."""


def projection_from_sklearn(model: Any) -> Projection:
    """See `Projection.from_sklearn`."""
    return Projection(*_affine(model))


def _affine(model: Any) -> _Affine:
    model = getattr(model, "best_estimator_", model)  # Of a search for parameters.
    if hasattr(model, "coef_"):
        return _linear(model)
    if not hasattr(model, "steps"):
        directions, bias = _transform(model)
        return np.diag(directions) if directions.ndim == 1 else directions, bias
    steps = [step for _, step in model.steps if step is not None and not _passes(step)]
    if not steps:
        raise _refused(model, "it has no step that does anything")
    *before, last = steps
    # From the last step back, so that no matrix is larger than the answer.
    directions, bias = _affine(last)
    for step in reversed(before):
        if hasattr(step, "coef_"):
            raise _refused(step, "a linear model is the last step of a pipeline or none")
        inner, shift = _affine(step) if hasattr(step, "steps") else _transform(step)
        bias = bias + directions @ shift
        directions = directions * inner if inner.ndim == 1 else directions @ inner
    return directions, bias


def _passes(step: object) -> bool:
    return isinstance(step, str) and step == "passthrough"


def _linear(model: Any) -> _Affine:
    """A model that predicts, or decides by, coef_ x + intercept_."""
    if hasattr(model, "x_rotations_"):
        raise _refused(model, "it centers rows before its coef_")
    if hasattr(model, "offset_"):
        raise _refused(model, "it decides by an offset of its own")
    if not _predicts_as_is(model):
        raise _refused(
            model, "it predicts a function of coef_ x + intercept_, such as its exponential"
        )
    given = model.coef_
    directions = np.atleast_2d(np.asarray(given.toarray() if hasattr(given, "toarray") else given))
    if directions.shape[0] > 1 and hasattr(model, "dual_coef_"):
        raise _refused(model, "its directions are of pairs of classes, which vote")
    bias = np.broadcast_to(np.asarray(getattr(model, "intercept_", 0.0)), len(directions))
    return directions.astype(np.float64), bias.astype(np.float64)


def _predicts_as_is(model: Any) -> bool:
    """Whether what it predicts is coef_ x + intercept_ itself, and not the inverse of a link of it,
    as of generalized linear models."""
    loss = getattr(model, "_base_loss", None)
    # Since scikit-learn 1.1, and before.
    link = getattr(loss, "link", None) or getattr(model, "_link_instance", None)
    if link is not None:
        return np.array_equal(link.inverse(_VALUES), _VALUES)
    return type(model).__name__ not in _LOG_LINKS


def _transform(model: Any) -> _Affine:
    """A model whose transform is affine. Where A is diagonal it is given as its diagonal."""
    if all(hasattr(model, name) for name in ("with_mean", "with_std", "scale_", "mean_")):
        return _standardized(model)
    if all(hasattr(model, name) for name in ("components_", "explained_variance_")):
        # A PCA, or a truncated SVD, which has no mean.
        directions = np.asarray(model.components_, np.float64)
        if getattr(model, "whiten", False):
            scale = np.sqrt(np.asarray(model.explained_variance_, np.float64))
            directions = directions / np.maximum(scale, np.finfo(np.float64).eps)[:, None]
        mean = getattr(model, "mean_", None)
        return directions, -directions @ (np.zeros(directions.shape[1]) if mean is None else mean)
    raise _refused(
        model,
        "it is not linear, not fitted, or not known; use a linear model with coef_, a PCA, a "
        "StandardScaler or a pipeline of these, or make the Projection of its directions yourself",
    )


def _standardized(scaler: Any) -> _Affine:
    """(x - mean) / scale; either may be left out."""
    width = scaler.n_features_in_
    scale = np.ones(width) if scaler.scale_ is None else np.asarray(scaler.scale_, np.float64)
    mean = np.asarray(scaler.mean_, np.float64) if scaler.with_mean else np.zeros(width)
    return 1 / scale, -mean / scale


def _refused(model: object, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"a model {described(model)} cannot be read as a projection: {why}",
        reason="FIELD_INVALID",
        path=("model",),
    )
