"""Steering: changes made to activations while tokens are computed.

In the formulas x is one row of a site, a vector; |v| is the norm of v, and u = v / |v|. Vectors are
numpy arrays, torch tensors, steering vectors or lists of finite numbers, which are sent as float32;
or what the server has or makes: stored vectors, features of dictionaries, kept rows, or an edited
explanation (see `sources`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actserve._checks import UINT32, described, finite, integer
from actserve._names import Named, named
from actserve.dictionaries import DICTIONARIES, StoredDictionary, feature_index, whole_name
from actserve.errors import InvalidRequest
from actserve.kept import KeptRows
from actserve.positions import Positions, check_positions, positions_to_proto
from actserve.sites import SiteLike, parse_sites, plain_sites
from actserve.sources import (
    Matrix,
    Vector,
    checked_directions,
    checked_matrix,
    checked_vector,
    matrix_to_proto,
    vector_to_proto,
)
from actserve.steering_vectors import Intervene, SteeringVector
from actserve.stored_vectors import StoredVector, is_stored_name
from actserve.tensors import as_direction, as_vector, check_independent
from actserve.v1 import intervention_pb2 as pb
from actserve.when import When


@dataclass(frozen=True, eq=False)
class Intervention(Intervene, ABC):
    """A change made to the rows of some sites; its kinds are the classes below.

    - `sites`: one site, or several of one width that are changed alike.
    - `positions`: the tokens whose rows are changed; see `Positions`.
    - `heads`: at q, k, v and z, the heads changed, each by itself: x is one head's part of a row,
      and every vector has the width of a head. The whole row when empty.
    - `allow_unused`: whether it may be that none of its tokens is run. Otherwise such a sequence is
      an `InvalidRequest`.
    - `when`: at which of the selected tokens it acts; at all of them when None.

    An intervention checks and copies what it is given when it is made, and raises `InvalidRequest`.
    """

    sites: SiteLike | Iterable[SiteLike]
    positions: Positions = field(default="all", kw_only=True)
    heads: Sequence[int] = field(default=(), kw_only=True)
    allow_unused: bool = field(default=False, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        # Here, so that the line that made a mistake is the line that raises.
        sites = parse_sites(self.sites)
        if not sites:
            raise InvalidRequest(
                "sites is empty; name at least one, as in 'resid_post.10'", reason="FIELD_REQUIRED"
            )
        if not isinstance(self.heads, Iterable):
            raise InvalidRequest(
                f"heads is {described(self.heads)}; give a list of heads, as in heads=[3]",
                reason="HEAD_OUT_OF_RANGE",
            )
        heads = tuple(integer(head, "a head", UINT32, "HEAD_OUT_OF_RANGE") for head in self.heads)
        if len({*heads}) < len(heads):
            raise InvalidRequest(
                f"heads {list(heads)} name a head twice; name it once", reason="HEAD_OUT_OF_RANGE"
            )
        check_positions(self.positions)
        if not isinstance(self.when, When | None):
            raise InvalidRequest(
                f"when is {described(self.when)}; give a condition, as in "
                "When(Probe('resid_post.5', direction), above=1.0)",
                reason="FIELD_INVALID",
            )
        self._set(sites=sites, heads=heads)

    def to_proto(self) -> pb.Intervention:
        """The intervention as the contract writes it."""
        return pb.Intervention(
            sites=[site.to_proto() for site in plain_sites(self.sites)],
            positions=positions_to_proto(self.positions),
            heads=self.heads,
            allow_unused=self.allow_unused,
            when=self.when.to_proto() if self.when else None,
            **self._operation(),
        )

    @abstractmethod
    def _operation(self) -> Mapping[str, Any]:
        """The operation, by its name in the contract."""

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """x + c v, or with `relative` x + c |x| u: steering (Turner et al., "Activation Addition",
    2023).

    `vector` v has shape [width]; `coefficient` c is in units of the activation itself. With
    `relative` it is in units of the row's norm, which differs by orders of magnitude over layers;
    then v must not be zero.
    """

    vector: Vector
    coefficient: float = 1.0
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check = as_direction if self.relative else as_vector
        self._set(
            vector=checked_vector(self.vector, "vector", check),
            coefficient=finite(self.coefficient, "coefficient"),
        )

    def _operation(self) -> Mapping[str, Any]:
        return {
            "add": pb.AddOperation(
                vector=vector_to_proto(self.vector),
                coefficient=self.coefficient,
                relative=self.relative,
            )
        }


@dataclass(frozen=True, eq=False)
class Ablate(Intervention):
    """x - c (x . u) u: directional ablation (Arditi et al., "Refusal in Language Models Is Mediated
    by a Single Direction", 2024).

    `direction` v has shape [width] and is not zero. A `coefficient` c of one removes the direction,
    two reflects it.
    """

    direction: Vector
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            direction=checked_vector(self.direction, "direction", as_direction),
            coefficient=finite(self.coefficient, "coefficient"),
        )

    def _operation(self) -> Mapping[str, Any]:
        return {
            "ablate": pb.AblateOperation(
                direction=vector_to_proto(self.direction), coefficient=self.coefficient
            )
        }


@dataclass(frozen=True, eq=False)
class Project(Intervention):
    """P x, or with `away` x - P x, where P is the orthogonal projection onto the span of some
    directions. Projecting away is how Ravfogel et al., "Null It Out", 2020, remove a concept.

    `directions` have shape [directions, width], or [width] for one, and are linearly independent;
    they need not be orthogonal or of any norm.
    """

    directions: Matrix
    away: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        directions = checked_directions(self.directions, "directions")
        if not isinstance(directions, KeptRows):
            check_independent(np.asarray(directions), "directions")
        self._set(directions=directions)

    def _operation(self) -> Mapping[str, Any]:
        directions = matrix_to_proto(self.directions)
        return {"project": pb.ProjectOperation(directions=directions, away=self.away)}


@dataclass(frozen=True, eq=False)
class Clamp(Intervention):
    """x + (min(max(x . u, minimum), maximum) - x . u) u: bounds the component along a direction, or
    sets it, where the bounds are equal.

    `direction` v has shape [width] and is not zero. At least one of `minimum` and `maximum` is
    given, in units of the activation itself; None is no bound.
    """

    direction: Vector
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = {
            name: finite(bound, name)
            for name, bound in (("minimum", self.minimum), ("maximum", self.maximum))
            if bound is not None
        }
        if not bounds:
            raise InvalidRequest(
                "a clamp without bounds changes nothing; give a minimum, a maximum or both",
                reason="FIELD_REQUIRED",
            )
        if len(bounds) == 2 and bounds["minimum"] > bounds["maximum"]:
            raise InvalidRequest(
                f"the minimum {bounds['minimum']} is above the maximum {bounds['maximum']}; "
                "exchange them",
                reason="FIELD_INVALID",
            )
        self._set(direction=checked_vector(self.direction, "direction", as_direction), **bounds)

    def _operation(self) -> Mapping[str, Any]:
        return {
            "clamp": pb.ClampOperation(
                direction=vector_to_proto(self.direction),
                minimum=self.minimum,
                maximum=self.maximum,
            )
        }


@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """Other rows in place of x. With rows captured from another run this is activation patching
    (Vig et al., 2020; Meng et al., 2022).

    `rows` have shape [positions, width], a row for each selected position in ascending order, as
    captured rows are, or [width] for the same row everywhere. Rows that the server has kept are
    named instead, by `Activations.kept` or as `KeptRows`.
    """

    rows: Matrix

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(rows=checked_matrix(self.rows, "rows", ("positions", "width"), ("width",)))

    def _operation(self) -> Mapping[str, Any]:
        return {"replace": pb.ReplaceOperation(rows=matrix_to_proto(self.rows))}


@dataclass(frozen=True, eq=False)
class Swap(Intervention):
    """x + (b - a)(first - second): exchanges two directions. Here both are divided by their norms,
    and a and b are the coefficients of x's projection onto their span, a first + b second.

    `first` and `second` have shape [width] and are neither zero nor parallel.
    """

    first: Vector
    second: Vector

    def __post_init__(self) -> None:
        super().__post_init__()
        first = checked_vector(self.first, "first", as_direction)
        second = checked_vector(self.second, "second", as_direction)
        if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
            if first.shape != second.shape:
                raise InvalidRequest(
                    f"first is {len(first)} wide and second is {len(second)}; both have the width "
                    "of the site",
                    reason="TENSOR_WIDTH_MISMATCH",
                )
            check_independent(np.stack([first, second]), "first and second")
        self._set(first=first, second=second)

    def _operation(self) -> Mapping[str, Any]:
        first, second = vector_to_proto(self.first), vector_to_proto(self.second)
        return {"swap": pb.SwapOperation(first=first, second=second)}


@dataclass(frozen=True, eq=False)
class Zero(Intervention):
    """0 in place of x: zero ablation."""

    def _operation(self) -> Mapping[str, Any]:
        return {"zero": pb.ZeroOperation()}


@dataclass(frozen=True, eq=False)
class Mean(Intervention):
    """A mean m in place of x: mean ablation (Wang et al., "Interpretability in the Wild", 2022).

    `mean` m has shape [width]; over which data is your choice.
    """

    mean: Vector

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(mean=checked_vector(self.mean, "mean"))

    def _operation(self) -> Mapping[str, Any]:
        return {"mean": pb.MeanOperation(mean=vector_to_proto(self.mean))}


@dataclass(frozen=True, eq=False)
class ChangeFeatures(Intervention):
    """x + sum over i of (f'_i - f_i) d_i: changes features f of a dictionary, and keeps of x what
    the dictionary does not explain. d_i is what feature i writes.

    - `dictionary`: its id, its whole name, or what `client.dictionaries` returned.
    - `values`: f'_i by index, whatever f_i is.
    - `additions`: f'_i - f_i by index, also where f_i is zero.
    - `factors`: f'_i / f_i by index: zero ablates the feature, one changes nothing.

    Each feature is named once, in one of the three. Of a transcoder, whose features are read
    elsewhere, only `additions` are served, at the sites that it writes to.

        ChangeFeatures("resid_post.20", "smollm2-135m", values={123: 60.0}, factors={7: 0.0})
    """

    dictionary: str | Named | StoredDictionary
    values: Mapping[int, float] = field(default_factory=dict, kw_only=True)
    additions: Mapping[int, float] = field(default_factory=dict, kw_only=True)
    factors: Mapping[int, float] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        changes = {
            name: _changes(getattr(self, name), name) for name in ("values", "additions", "factors")
        }
        indices = [index for each in changes.values() for index in each]
        if not indices or len({*indices}) < len(indices):
            raise InvalidRequest(
                f"the features to change are {described(indices)}; name at least one, and each "
                "once, in values, additions or factors",
                reason="FIELD_INVALID" if indices else "FIELD_REQUIRED",
            )
        self._set(dictionary=named(DICTIONARIES, self.dictionary), **changes)

    def _operation(self) -> Mapping[str, Any]:
        return {
            "features": pb.FeatureOperation(
                dictionary=whole_name(self.dictionary),
                changes=[
                    *(pb.FeatureChange(index=i, value=n) for i, n in self.values.items()),
                    *(pb.FeatureChange(index=i, addition=n) for i, n in self.additions.items()),
                    *(pb.FeatureChange(index=i, factor=n) for i, n in self.factors.items()),
                ],
            )
        }


def _changes(changes: Any, name: str) -> dict[int, float]:
    if not isinstance(changes, Mapping):
        raise InvalidRequest(
            f"{name} is {described(changes)}; give numbers by feature, as in {{123: 5.0}}",
            reason="FIELD_INVALID",
            path=(name,),
        )
    return {
        feature_index(index): finite(number, f"{name} of feature {index}")
        for index, number in changes.items()
    }


def interventions_to_proto(
    intervene: Intervene | Iterable[Intervene] | None,
) -> list[pb.Intervention]:
    """One intervention or several, in order; None is none. Raises `InvalidRequest` for anything
    else."""
    match intervene:
        case None:
            return []
        case Intervene():
            return [_intervention(intervene, "intervene")]
        case str() | Mapping():
            raise _no_intervention(intervene, "intervene")
        case Iterable() if not hasattr(intervene, "__array__"):
            return [
                _intervention(each, f"item {index} of intervene", "intervene", index)
                for index, each in enumerate(intervene)
            ]
        case _:
            raise _no_intervention(intervene, "intervene")


def _intervention(value: object, what: str, *path: str | int) -> pb.Intervention:
    match value:
        case Intervention():
            return value.to_proto()
        case SteeringVector() | StoredVector():
            return value.add().to_proto()
        case _:
            raise _no_intervention(value, what, *path)


def _no_intervention(value: object, what: str, *path: str | int) -> InvalidRequest:
    if isinstance(value, str) and is_stored_name(value):
        # Where to add it only the server knows, and a call is not made of two.
        return InvalidRequest(
            f"{what} is {described(value)}, a name; a stored vector is added at its own sites by "
            f"intervene=client.vectors.get({described(value)}), and elsewhere by "
            f"Add('resid_post.10', {described(value)}, 2.0)",
            reason="FIELD_INVALID",
            path=path or (what,),
        )
    return InvalidRequest(
        f"{what} is {described(value)}; give an intervention, such as Add('resid_post.10', vector, "
        "2.0), a SteeringVector, a stored vector, or a list of these",
        reason="FIELD_INVALID",
        path=path or (what,),
    )
