"""Refusals of operations: their tensors and numbers."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import tensor_pb2
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import addition, generate, inline, intervention, tensor
from tests.contract.refusals import ONES, WIDTH, Case, check, edit, refusal

ZERO, NEARLY = np.zeros(WIDTH), ONES + 1e-6 * np.eye(WIDTH)[0]
NOT_FINITE = np.where(np.arange(WIDTH) == 3, np.nan, 1.0)
INFINITE = np.where(np.arange(WIDTH) == 2, np.inf, 1.0)


def vector(case: str, change: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    edit = intervention(add={"vector": {"tensor": {**tensor(ONES), **change}}})
    return Case(
        name=f"vector {case}",
        request=generate(interventions=[addition(ONES), edit]),
        reason=reason,
        field=f"interventions[1].add.vector.tensor.{field}",
        says=says,
    )


CASES = [
    # Tensors of operations
    *(
        edit(f"without {kind}.{name}", {kind: {}}, "FIELD_REQUIRED", f".{kind}.{name}", shape)
        for kind, name, shape in [
            ("add", "vector", "[16]"),
            ("ablate", "direction", "[16]"),
            ("project", "directions", "[directions, 16]"),
            ("clamp", "direction", "[16]"),
            ("replace", "rows", "[16]"),
            ("swap", "first", "[16]"),
            ("mean", "mean", "[16]"),
        ]
    ),
    edit(
        "without swap.second",
        {"swap": {"first": inline(ONES)}},
        "FIELD_REQUIRED",
        ".swap.second",
    ),
    *(
        edit(
            f"of a wrong width of {kind}.{name}",
            {kind: {**others, name: inline(np.ones(shape))}},
            "TENSOR_WIDTH_MISMATCH",
            f".{kind}.{name}.tensor.shape",
            "a row of resid_post.1 is 16 wide",
            wanted,
        )
        for kind, name, others, shape, wanted in [
            ("ablate", "direction", {}, [15], "[16]"),
            ("project", "directions", {}, [16], "[n, 16]"),
            ("project", "directions", {}, [0, 16], "at least 1"),
            ("project", "directions", {}, [2, 15], "[n, 16]"),
            ("clamp", "direction", {}, [17], "[16]"),
            ("replace", "rows", {}, [8], "[16]"),
            ("replace", "rows", {}, [6, 8], "[n, 16]"),
            ("replace", "rows", {}, [0, 16], "at least 1"),
            ("replace", "rows", {}, [1, 6, 16], "[16]"),
            ("swap", "first", {}, [2, 16], "[16]"),
            ("swap", "second", {"first": inline(ONES)}, [1], "[16]"),
            ("mean", "mean", {}, [4], "[16]"),
        ]
    ),
    edit(
        "with NaN in a matrix",
        {"replace": {"rows": inline(np.stack([ONES, NOT_FINITE]))}},
        "TENSOR_NOT_FINITE",
        ".replace.rows.tensor.data",
        "element 1, 3",
    ),
    *(
        edit(
            f"of a zero {kind}.{name}",
            {kind: {**others, name: inline(ZERO)}},
            "TENSOR_DEGENERATE",
            f".{kind}.{name}",
            f"{name} is zero",
        )
        for kind, name, others in [
            ("add", "vector", {"relative": True}),
            ("ablate", "direction", {}),
            ("clamp", "direction", {"minimum": 0.0}),
            ("swap", "first", {"second": inline(ONES)}),
            ("swap", "second", {"first": inline(ONES)}),
        ]
    ),
    edit(
        "projecting onto zero",
        {"project": {"directions": inline([ONES, ZERO])}},
        "TENSOR_DEGENERATE",
        ".project.directions",
        "direction 1 is zero",
    ),
    *(
        edit(
            f"projecting onto directions that are {how}",
            {"project": {"directions": inline(directions)}},
            "TENSOR_DEGENERATE",
            ".project.directions",
            "not independent",
            "0.0001",
        )
        for how, directions in [
            ("equal", [ONES, ONES]),
            ("opposite at another scale", [ONES, -1e6 * ONES]),
            ("nearly equal", [ONES, NEARLY]),
            ("dependent", [ONES, np.arange(WIDTH), 3 * ONES - 2 * np.arange(WIDTH)]),
        ]
    ),
    edit(
        "projecting onto more directions than there can be",
        {"project": {"directions": inline(np.eye(WIDTH + 1, WIDTH))}},
        "TENSOR_DEGENERATE",
        ".project.directions",
        "17 directions",
        "at most 16",
    ),
    *(
        edit(
            f"swapping directions that are {how}",
            {"swap": {"first": inline(ONES), "second": inline(second)}},
            "TENSOR_DEGENERATE",
            ".swap.second",
            "not independent",
        )
        for how, second in [("parallel", 2 * ONES), ("opposite", -ONES), ("nearly equal", NEARLY)]
    ),
    # Numbers of operations
    edit(
        "clamping without a bound",
        {"clamp": {"direction": inline(ONES)}},
        "FIELD_REQUIRED",
        ".clamp",
        "minimum, maximum or both",
    ),
    edit(
        "clamping between crossed bounds",
        {"clamp": {"direction": inline(ONES), "minimum": 2.0, "maximum": 1.5}},
        "FIELD_INVALID",
        ".clamp.minimum",
        "2",
        "1.5",
    ),
    *(
        edit(
            f"with {kind}.{name} {value}",
            {kind: {**others, name: value}},
            "FIELD_INVALID",
            f".{kind}.{name}",
            str(value),
            "finite",
        )
        for kind, name, others in [
            ("add", "coefficient", {"vector": inline(ONES), "relative": True}),
            ("ablate", "coefficient", {"direction": inline(ONES)}),
            ("clamp", "minimum", {"direction": inline(ONES)}),
            ("clamp", "maximum", {"direction": inline(ONES)}),
        ]
        for value in (float("nan"), float("inf"))
    ),
    Case(
        name="coefficient not a number",
        request=generate(interventions=[addition(ONES, coefficient=float("nan"))]),
        reason="FIELD_INVALID",
        field="interventions[0].add.coefficient",
        says=("nan", "finite"),
    ),
    Case(
        name="coefficient infinite",
        request=generate(interventions=[addition(ONES, coefficient=float("inf"))]),
        reason="FIELD_INVALID",
        field="interventions[0].add.coefficient",
    ),
    Case(
        name="coefficient times vector overflows",
        request=generate(interventions=[addition(ONES * 1e30, coefficient=1e30)]),
        reason="TENSOR_NOT_FINITE",
        field="interventions[0].add.coefficient",
        says=("overflow",),
    ),
    vector(
        "of an unset element type",
        {"element_type": 0},
        "TENSOR_ELEMENT_TYPE_UNKNOWN",
        "element_type",
        "F32",
    ),
    vector(
        "of an unknown element type",
        {"element_type": 9},
        "TENSOR_ELEMENT_TYPE_UNKNOWN",
        "element_type",
        "9",
    ),
    vector(
        "with a byte too few",
        {"data": ONES.astype("<f4").tobytes()[:-1]},
        "TENSOR_SIZE_MISMATCH",
        "data",
        "64 bytes",
        "63",
    ),
    vector(
        "with a byte too many",
        {"data": ONES.astype("<f4").tobytes() + b"\0"},
        "TENSOR_SIZE_MISMATCH",
        "data",
        "65",
    ),
    vector(
        "whose bytes are of another type",
        {"element_type": tensor_pb2.ELEMENT_TYPE_BF16},
        "TENSOR_SIZE_MISMATCH",
        "data",
        "32 bytes",
    ),
    vector("without data", {"data": b""}, "TENSOR_SIZE_MISMATCH", "data"),
    vector(
        "of another width",
        tensor(np.ones(8)),
        "TENSOR_WIDTH_MISMATCH",
        "shape",
        "[8]",
        "[16]",
    ),
    vector("of two axes", tensor(np.ones((1, WIDTH))), "TENSOR_WIDTH_MISMATCH", "shape", "[1, 16]"),
    vector("holding NaN", tensor(NOT_FINITE), "TENSOR_NOT_FINITE", "data", "element 3", "nan"),
    vector("holding infinity", tensor(INFINITE), "TENSOR_NOT_FINITE", "data", "element 2", "inf"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"add": {"vector": inline(ONES), "coefficient": 1e5}}, "add.coefficient", "TENSOR"),
        (
            {"add": {"vector": inline(ONES), "coefficient": 1e5, "relative": True}},
            "add.coefficient",
            "FIELD",
        ),
        (
            {"ablate": {"direction": inline(ONES), "coefficient": -1e5}},
            "ablate.coefficient",
            "FIELD",
        ),
        ({"clamp": {"direction": inline(ONES), "minimum": 1e5}}, "clamp.minimum", "FIELD"),
        ({"clamp": {"direction": inline(ONES), "maximum": -1e5}}, "clamp.maximum", "FIELD"),
        ({"replace": {"rows": inline(1e5 * ONES)}}, "replace.rows", "TENSOR"),
        ({"mean": {"mean": inline(1e5 * ONES)}}, "mean.mean", "TENSOR"),
    ],
    ids=str,
)
async def test_what_the_models_element_type_cannot_hold_is_refused(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    half = FakeEngine(element_type=ElementType.F16)
    refused = await refusal(generate(interventions=[intervention(**fields)]), half)
    assert refused.field == f"interventions[0].{field}"
    assert refused.reason == {"FIELD": "FIELD_INVALID", "TENSOR": "TENSOR_NOT_FINITE"}[reason]
    assert "overflows f16" in refused.message
    assert half.counters.started == 0
