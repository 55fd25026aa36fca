"""How interventions become what travels, and which ones are refused where they are made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import (
    Ablate,
    Add,
    ChangeFeatures,
    Clamp,
    Feature,
    InvalidRequest,
    Mean,
    Project,
    Replace,
    Stored,
    Swap,
    Zero,
)
from actserve.v1 import intervention_pb2 as pb
from actserve.v1 import source_pb2

from .fake_readouts import matrix, tensor, vector

SITE = "resid_post.1"
SAE = "models/big/dictionaries/sae"
V = [1.0, 0.0, -2.0]
W = [0.0, 3.0, 0.5]


# By field of the contract's message: what a person writes, and the operation that travels.
OPERATIONS: list[tuple[str, actserve.Intervention, Any]] = [
    ("add", Add(SITE, V), pb.AddOperation(vector=vector(V), coefficient=1)),
    (
        "add",
        Add(SITE, V, -4.0, relative=True),
        pb.AddOperation(vector=vector(V), coefficient=-4, relative=True),
    ),
    ("add", Add(SITE, [0, 0], 0), pb.AddOperation(vector=vector([0, 0]), coefficient=0)),
    ("ablate", Ablate(SITE, V), pb.AblateOperation(direction=vector(V), coefficient=1)),
    ("ablate", Ablate(SITE, V, 2), pb.AblateOperation(direction=vector(V), coefficient=2)),
    ("project", Project(SITE, [V, W]), pb.ProjectOperation(directions=matrix([V, W]))),
    ("project", Project(SITE, V, True), pb.ProjectOperation(directions=matrix([V]), away=True)),
    (
        "clamp",
        Clamp(SITE, V, minimum=0.0),
        pb.ClampOperation(direction=vector(V), minimum=0),
    ),
    ("clamp", Clamp(SITE, V, maximum=0), pb.ClampOperation(direction=vector(V), maximum=0)),
    (
        "clamp",
        Clamp(SITE, V, 2.5, 2.5),
        pb.ClampOperation(direction=vector(V), minimum=2.5, maximum=2.5),
    ),
    ("replace", Replace(SITE, [V, W]), pb.ReplaceOperation(rows=matrix([V, W]))),
    ("replace", Replace(SITE, V), pb.ReplaceOperation(rows=matrix(V))),
    ("swap", Swap(SITE, V, W), pb.SwapOperation(first=vector(V), second=vector(W))),
    ("zero", Zero(SITE), pb.ZeroOperation()),
    ("mean", Mean(SITE, V), pb.MeanOperation(mean=vector(V))),
    (
        "features",
        ChangeFeatures(SITE, SAE, values={3: 2.0}, additions={5: -1.0}, factors={7: 0.0}),
        pb.FeatureOperation(
            dictionary=SAE,
            changes=[
                pb.FeatureChange(index=3, value=2),
                pb.FeatureChange(index=5, addition=-1),
                pb.FeatureChange(index=7, factor=0),
            ],
        ),
    ),
]


@pytest.mark.parametrize(("name", "intervention", "operation"), OPERATIONS)
def test_each_intervention_is_its_operation(
    name: str, intervention: actserve.Intervention, operation: Any
) -> None:
    proto = intervention.to_proto()
    assert proto.WhichOneof("operation") == name
    assert getattr(proto, name) == operation
    assert [(site.hook_point, site.layer) for site in proto.sites] == [(4, 1)]
    assert proto.positions.HasField("all")
    assert (list(proto.heads), proto.allow_unused) == ([], False)


JOY = "models/big/steeringVectors/joy"
KEPT = actserve.KeptRows("keptActivations/x", "embedding", [1])
EDIT = actserve.ExplanationEdit("It rhymes with rabbit.", "It rhymes with mouse.", nla="tiny")
NAMED: dict[str, tuple[Any, source_pb2.VectorSource]] = {
    "kept rows": (KEPT, source_pb2.VectorSource(kept=KEPT.to_proto())),
    "the name of kept rows": (
        "keptActivations/x",
        source_pb2.VectorSource(kept=source_pb2.KeptRows(name="keptActivations/x")),
    ),
    "a stored vector": (Stored(JOY), source_pb2.VectorSource(steering_vector=JOY)),
    "the name of a stored vector": (JOY, source_pb2.VectorSource(steering_vector=JOY)),
    "a feature of a dictionary": (
        Feature(SAE, 3),
        source_pb2.VectorSource(feature=source_pb2.DictionaryFeature(dictionary=SAE, index=3)),
    ),
    "an edit": (EDIT, source_pb2.VectorSource(edit=EDIT.to_proto())),
}
VECTORS: dict[str, Callable[[Any], actserve.Intervention]] = {
    "add.vector": lambda source: Add(SITE, source),
    "add.vector, relative": lambda source: Add(SITE, source, relative=True),
    "ablate.direction": lambda source: Ablate(SITE, source),
    "clamp.direction": lambda source: Clamp(SITE, source, 0),
    "swap.first": lambda source: Swap(SITE, source, V),
    "swap.second": lambda source: Swap(SITE, V, source),
    "mean.mean": lambda source: Mean(SITE, source),
}


@pytest.mark.parametrize("field", VECTORS)
@pytest.mark.parametrize("name", NAMED)
def test_a_name_stands_wherever_a_vector_does(field: str, name: str) -> None:
    source, expected = NAMED[name]
    operation, of = field.split(",")[0].split(".")
    assert getattr(getattr(VECTORS[field](source).to_proto(), operation), of) == expected


def test_kept_rows_stand_wherever_a_matrix_does() -> None:
    expected = source_pb2.MatrixSource(kept=KEPT.to_proto())
    assert Project(SITE, KEPT).to_proto().project.directions == expected
    assert Replace(SITE, KEPT).to_proto().replace.rows == expected
    assert actserve.Projection(KEPT, [1, 2]).to_proto().directions == expected


def test_a_text_that_names_nothing_is_refused() -> None:
    for make in VECTORS.values():
        with pytest.raises(InvalidRequest, match="does not name a stored vector"):
            make("resid_post.3")
    with pytest.raises(InvalidRequest, match="does not name kept activations"):
        Replace(SITE, "resid_post.3")


def test_a_stored_vector_is_no_matrix() -> None:
    name: Any
    for make in (Project, Replace):
        for name in (Stored("joy"), "joy"):
            with pytest.raises(
                InvalidRequest, match=r"client\.vectors\.get\('joy', elements=True\)"
            ):
                make(SITE, name)


def test_a_stored_vector_without_its_model_is_not_written() -> None:
    with pytest.raises(InvalidRequest, match="named without its model"):
        Add(SITE, "joy").to_proto()


def test_every_operation_of_the_contract_has_an_intervention() -> None:
    contract = pb.Intervention.DESCRIPTOR.oneofs_by_name["operation"].fields
    assert {field.name for field in contract} == {name for name, *_ in OPERATIONS}


MAKERS: dict[str, Callable[..., actserve.Intervention]] = {
    "add": lambda sites, **where: Add(sites, V, **where),
    "ablate": lambda sites, **where: Ablate(sites, V, **where),
    "project": lambda sites, **where: Project(sites, V, **where),
    "clamp": lambda sites, **where: Clamp(sites, V, 0, **where),
    "replace": lambda sites, **where: Replace(sites, V, **where),
    "swap": lambda sites, **where: Swap(sites, V, W, **where),
    "zero": Zero,
    "mean": lambda sites, **where: Mean(sites, V, **where),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_intervention_says_where_it_applies(kind: str) -> None:
    intervention = MAKERS[kind](
        (site for site in ("q.0", "blocks.-1.attn.hook_rot_q")),
        positions=actserve.ByText("France"),
        heads=range(2),
        allow_unused=True,
    )
    for _ in range(2):
        proto = intervention.to_proto()
        assert [(site.hook_point, site.layer) for site in proto.sites] == [(9, 0), (9, -1)]
        assert proto.positions.text.text == "France"
        assert list(proto.heads) == [0, 1]
        assert proto.allow_unused


WHERE_REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "no site": ([], {}, "FIELD_REQUIRED", "sites is empty"),
    "no such site": ("resid_post", {}, "SITE_INVALID", "is not a site"),
    "a site twice": (["q.1", "q.1"], {}, "SITE_INVALID", "name it once"),
    "no positions": (SITE, {"positions": []}, "POSITION_OUT_OF_RANGE", "is empty"),
    "a head alone": ("q.1", {"heads": 3}, "HEAD_OUT_OF_RANGE", r"as in heads=\[3\]"),
    "a negative head": ("q.1", {"heads": [-1]}, "HEAD_OUT_OF_RANGE", "-1 is not a head"),
    "a head twice": ("q.1", {"heads": [3, 3]}, "HEAD_OUT_OF_RANGE", "name it once"),
}


@pytest.mark.parametrize("case", WHERE_REFUSED)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_nowhere_is_refused(kind: str, case: str) -> None:
    sites, where, reason, message = WHERE_REFUSED[case]
    with pytest.raises(InvalidRequest, match=message) as caught:
        MAKERS[kind](sites, **where)
    assert caught.value.reason == reason


ARRAYS: dict[str, Any] = {
    "list": [1, 2, 0.5],
    "float64": np.array([1, 2, 0.5]),
    "float16": np.array([1, 2, 0.5], np.float16),
    "float32 with strides": np.array([1, 9, 2, 9, 0.5, 9], np.float32)[::2],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_vector_travels_as_float32(name: str) -> None:
    assert Add(SITE, ARRAYS[name]).to_proto().add.vector.tensor == tensor([1, 2, 0.5])


def test_rows_travel_in_c_order_whatever_their_memory() -> None:
    rows = tensor([[1, 0], [0, 3], [-2, 0.5]])
    assert Replace(SITE, np.array([V, W]).T).to_proto().replace.rows.tensor == rows


def test_a_vector_is_copied_when_it_is_given() -> None:
    vector = np.ones(3, np.float32)
    add = Add(SITE, vector)
    vector[:] = 7
    assert add.to_proto().add.vector.tensor == tensor([1, 1, 1])


# Each takes a vector, and calls it by this name.
TAKERS: dict[str, Callable[[Any], actserve.Intervention]] = {
    "vector": lambda vector: Add(SITE, vector),
    "direction": lambda vector: Ablate(SITE, vector),
    "directions": lambda vector: Project(SITE, vector),
    "rows": lambda vector: Replace(SITE, vector),
    "first": lambda vector: Swap(SITE, vector, V),
    "second": lambda vector: Swap(SITE, V, vector),
    "mean": lambda vector: Mean(SITE, vector),
}


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones((1, 1, 3)), r" must hold real numbers .*, but has shape \[1, 1, 3\]"),
        (3.0, r" .* shape \[\]"),
        ([], r" .* shape \[0\]"),
        ([[1, 2], [3]], r" .* shape \[2\] and type object"),
        (["a"], " .* type <U1"),
        ([1j], " .* type complex128"),
        ([True], " .* type bool"),
        ([1, np.nan], r"\[1\] is nan"),
        ([np.inf, 1], r"\[0\] is inf"),
        ([1e39], r"\[0\] is inf in float32"),
    ],
)
@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_vector_is_refused_by_name(name: str, vector: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}{message}") as caught:
        TAKERS[name](vector)
    assert caught.value.reason in ("TENSOR_WIDTH_MISMATCH", "TENSOR_NOT_FINITE")


DEGENERATE: dict[str, tuple[Callable[[], Any], str]] = {
    "a relative vector": (lambda: Add(SITE, [0, 0], relative=True), "vector is zero"),
    "an ablated direction": (lambda: Ablate(SITE, [0, 0]), "direction is zero"),
    "a clamped direction": (lambda: Clamp(SITE, [0, 0], 1), "direction is zero"),
    "a first direction": (lambda: Swap(SITE, [0, 0], [1, 0]), "first is zero"),
    "a second direction": (lambda: Swap(SITE, [1, 0], [0, 0]), "second is zero"),
    "one of several": (lambda: Project(SITE, [[1, 0], [0, 0]]), r"directions\[1\] is zero"),
    "parallel": (lambda: Swap(SITE, V, np.array(V) * -0.3), "first and second are .* dependent"),
    "in a plane": (lambda: Project(SITE, np.stack([V, W, np.add(V, W)])), "they span 2 of 3"),
    "more than the width": (lambda: Project(SITE, [[1, 0], [0, 1], [1, 2]]), "they span 2 of 3"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_directions_are_not_zero_and_independent(case: str) -> None:
    make, message = DEGENERATE[case]
    with pytest.raises(InvalidRequest, match=message) as caught:
        make()
    assert caught.value.reason == "TENSOR_DEGENERATE"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_directions_are_judged_by_where_they_point_not_by_their_norm(scale: float) -> None:
    Project(SITE, np.stack([np.array(V) * scale, W]))
    Add(SITE, np.array(V) * scale, relative=True)
    Swap(SITE, [1, 0], [1, 1e-3])


SCALARS: dict[str, Callable[[Any], actserve.Intervention]] = {
    "coefficient": lambda value: Add(SITE, V, value),
    "coefficient of an ablation": lambda value: Ablate(SITE, V, value),
    "minimum": lambda value: Clamp(SITE, V, minimum=value),
    "maximum": lambda value: Clamp(SITE, V, 0.0, maximum=value),
}


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "finite"), (float("inf"), "finite"), (1e39, "finite"), ("1", "a number")],
)
@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_is_finite_in_float32(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the {name.split()[0]} is .* must be {message}"):
        SCALARS[name](value)


@pytest.mark.parametrize("scalar", [np.float32(2.5), np.array(2.5)])
def test_a_scalar_may_be_an_array_without_axes(scalar: Any) -> None:
    assert Add(SITE, V, scalar).to_proto().add.coefficient == 2.5


@pytest.mark.parametrize(
    ("bounds", "reason", "message"),
    [((), "FIELD_REQUIRED", "without bounds"), ((2, 1), "FIELD_INVALID", "minimum 2.0 is above")],
)
def test_a_clamp_has_bounds_in_order(bounds: tuple[Any, ...], reason: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        Clamp(SITE, V, *bounds)
    assert caught.value.reason == reason


def test_swapped_directions_have_one_width() -> None:
    with pytest.raises(InvalidRequest, match="first is 3 wide and second is 2") as caught:
        Swap(SITE, V, [1, 2])
    assert caught.value.reason == "TENSOR_WIDTH_MISMATCH"
