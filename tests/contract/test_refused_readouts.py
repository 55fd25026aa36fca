"""Refusals of what becomes of rows: projections, reductions, keeping and labels."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import readout_pb2, site_pb2
from tests.contract.harness import fetch, generate, inline, site
from tests.contract.refusals import WIDTH, Case, capture, check

D = np.ones((3, WIDTH))
MEAN = readout_pb2.REDUCTION_MEAN
NAN = np.array([1.0, np.nan, 1.0])
PREDICTIONS = {"top_k": 1}
READ = {"sites": [site()]}


def projected(
    case: str, change: dict[str, Any], reason: str, field: str, *says: str, **spec: Any
) -> Case:
    projection = {"directions": inline(D), **change}
    return capture(
        f"projection {case}",
        {"sites": [site()], "projection": projection, **spec},
        reason,
        f"projection{field}",
        *says,
    )


CASES = [
    # Which, and how many
    Case(
        name="no readout",
        request=fetch(readouts=[]),
        reason="FIELD_REQUIRED",
        field="readouts",
        says=("send one",),
    ),
    Case(
        name="a readout of no kind",
        request=fetch(readouts=[{"rows": READ}, {}]),
        reason="FIELD_REQUIRED",
        field="readouts[1]",
        says=("rows, predictions, attention, keep, attention_summary, logit_attribution",),
    ),
    Case(
        name="too many readouts",
        request=fetch(readouts=[{"rows": READ}] * 7),
        reason="FIELD_INVALID",
        field="readouts",
        says=("7 readouts", "at most 6"),
    ),
    Case(
        name="a name of two readouts",
        request=generate(
            readouts=[
                {"rows": READ, "name": "a"},
                {"rows": READ},
                {"rows": READ},
                {"predictions": PREDICTIONS, "name": "a"},
            ]
        ),
        reason="FIELD_INVALID",
        field="readouts[3].name",
        says=("readouts 0 and 3", "'a'"),
    ),
    Case(
        name="a name too long",
        request=fetch(readouts=[{"rows": READ, "name": "\u00e4" * 33}]),
        reason="FIELD_INVALID",
        field="readouts[0].name",
        says=("66 bytes", "at most 64"),
    ),
    *(
        capture(f"{name} without sites", spec, "FIELD_REQUIRED", field, "no site is named")
        for name, spec, field in [
            ("nothing", {}, "sites"),
            ("a projection", {"projection": {"directions": inline(D)}}, "sites"),
            ("keeping", {"keep": {}}, "keep.sites"),
        ]
    ),
    # Projections
    projected("without directions", {"directions": None}, "FIELD_REQUIRED", ".directions", "16]"),
    projected(
        "of directions of another width",
        {"directions": inline(np.ones((3, 15)))},
        "TENSOR_WIDTH_MISMATCH",
        ".directions.tensor.shape",
        "a row of resid_post.1 is 16 wide",
        "[n, 16]",
    ),
    projected(
        "of one direction without its axis",
        {"directions": inline(np.ones(WIDTH))},
        "TENSOR_WIDTH_MISMATCH",
        ".directions.tensor.shape",
    ),
    projected(
        "of no direction",
        {"directions": inline(np.ones((0, WIDTH)))},
        "TENSOR_WIDTH_MISMATCH",
        ".directions.tensor.shape",
        "at least 1",
    ),
    projected(
        "of sites of two widths",
        {},
        "TENSOR_WIDTH_MISMATCH",
        ".directions",
        "k.1 is 8 wide",
        sites=[site(), site(1, site_pb2.HOOK_POINT_K)],
    ),
    projected(
        "of directions that are not finite",
        {"directions": inline(np.full((1, WIDTH), np.inf))},
        "TENSOR_NOT_FINITE",
        ".directions.tensor.data",
    ),
    *(
        projected(
            f"with a bias {how}",
            {"bias": inline(values)},
            reason,
            f".bias.tensor.{field}",
            says,
        )
        for how, values, reason, field, says in [
            ("of another length", np.ones(4), "TENSOR_WIDTH_MISMATCH", "shape", "3 wide"),
            ("of two axes", np.ones((1, 3)), "TENSOR_WIDTH_MISMATCH", "shape", "[3]"),
            ("that is not finite", NAN, "TENSOR_NOT_FINITE", "data", "element 1"),
        ]
    ),
    projected(
        "with no thresholds",
        {"jump_relu": {}},
        "FIELD_REQUIRED",
        ".jump_relu.thresholds",
        "[3]",
    ),
    projected(
        "with too many thresholds",
        {"jump_relu": {"thresholds": inline(np.ones(4))}},
        "TENSOR_WIDTH_MISMATCH",
        ".jump_relu.thresholds.tensor.shape",
        "a projection onto 3 directions",
    ),
    projected(
        "with thresholds that are not finite",
        {"jump_relu": {"thresholds": inline(NAN)}},
        "TENSOR_NOT_FINITE",
        ".jump_relu.thresholds.tensor.data",
    ),
    projected("keeping the top 0", {"top_k": {}}, "FIELD_INVALID", ".top_k.k", "1 or more"),
    projected("sending the top 0", {"send_top": 0}, "FIELD_INVALID", ".send_top", "unset for all"),
    # Reductions and keeping
    capture(
        "reduction unknown",
        {"sites": [site()], "reduction": 9},
        "FIELD_INVALID",
        "reduction",
        "9",
        "LAST, MEAN, MAX",
    ),
    *(
        capture(
            f"keep for {seconds} s",
            {"sites": [site()], "keep": {"ttl": {"seconds": seconds}}},
            "FIELD_INVALID",
            "keep.ttl",
            str(seconds),
            "above 0",
        )
        for seconds in (0, -1, 100_000)
    ),
    # Labels
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)
