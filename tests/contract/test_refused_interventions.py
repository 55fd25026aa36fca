"""Refusals of interventions: their number, sites, heads and rows, and ones that do nothing."""

from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import site_pb2
from tests.contract.harness import (
    addition,
    collect,
    fetch,
    generate,
    inline,
    intervention,
    serving,
    site,
)
from tests.contract.readouts import of_kind
from tests.contract.refusals import INVALID, ONES, WIDTH, Case, check, edit, engine, refusal

ATTN_OUT, Q = site_pb2.HOOK_POINT_ATTN_OUT, site_pb2.HOOK_POINT_Q


CASES = [
    Case(
        name="too many interventions",
        request=fetch(interventions=[addition(ONES)] * 3),
        reason="TOO_MANY_INTERVENTIONS",
        field="interventions",
        says=("3", "2"),
    ),
    Case(
        name="intervention without an operation",
        request=generate(interventions=[intervention()]),
        reason="FIELD_REQUIRED",
        field="interventions[0]",
        says=("add", "ablate", "project", "clamp", "replace", "swap", "zero", "mean"),
    ),
    # Sites of interventions
    edit("without sites", {"sites": []}, "FIELD_REQUIRED", ".sites", "at least one"),
    edit("at an unset site", {"sites": [{}]}, "SITE_INVALID", ".sites[0].hook_point"),
    edit(
        "beyond the last layer",
        {"sites": [site(), site(4)]},
        "LAYER_OUT_OF_RANGE",
        ".sites[1]",
        "0 to 3",
    ),
    edit(
        "at a site twice",
        {"sites": [site(3), site(-1)]},
        "SITE_INVALID",
        ".sites[1]",
        "resid_post.3",
        "once",
    ),
    edit(
        "at sites of two widths",
        {"sites": [site(0), site(1), site(1, site_pb2.HOOK_POINT_K)]},
        "SITE_INVALID",
        ".sites[2]",
        "resid_post.0 is 16 wide",
        "k.1 is 8 wide",
        "for each width",
    ),
    Case(
        name="intervention at an unserved site",
        request=fetch(interventions=[intervention(site(1, ATTN_OUT), zero={})]),
        reason="SITE_NOT_SERVED",
        field="interventions[0].sites[0]",
        says=("attn_out.1", "not verified"),
        code=grpc.StatusCode.FAILED_PRECONDITION,
    ),
    Case(
        name="intervention at the logits",
        request=fetch(
            interventions=[intervention(site(None, site_pb2.HOOK_POINT_LOGITS), zero={})]
        ),
        reason="SITE_NOT_SERVED",
        field="interventions[0].sites[0]",
        says=("logits cannot be changed", "final_norm"),
        code=grpc.StatusCode.FAILED_PRECONDITION,
    ),
    # Heads
    edit(
        "on heads where there are none",
        {"heads": [0]},
        "HEAD_OUT_OF_RANGE",
        ".heads",
        "resid_post.1 has no heads",
        "q, k, v, z",
    ),
    edit(
        "on a head that is not there",
        {"sites": [site(1, Q)], "heads": [0, 4]},
        "HEAD_OUT_OF_RANGE",
        ".heads",
        "head 4",
        "0 to 3",
    ),
    edit(
        "on a query head of a key",
        {"sites": [site(1, site_pb2.HOOK_POINT_K)], "heads": [2]},
        "HEAD_OUT_OF_RANGE",
        ".heads",
        "0 to 1",
    ),
    edit(
        "on a head twice",
        {"sites": [site(1, Q)], "heads": [1, 0, 1]},
        "HEAD_OUT_OF_RANGE",
        ".heads",
        "head 1",
        "once",
    ),
    edit(
        "on heads with a whole row",
        {"sites": [site(1, Q)], "heads": [0], "mean": {"mean": inline(ONES)}},
        "TENSOR_WIDTH_MISMATCH",
        ".mean.mean.tensor.shape",
        "a head of q.1 is 4 wide",
        "[4]",
    ),
    # Replacing with a row for each position: "hello" has 6 tokens.
    edit(
        "replacing with too few rows",
        {"positions": {"prompt": {}}, "replace": {"rows": inline(np.ones((5, WIDTH)))}},
        "TENSOR_SIZE_MISMATCH",
        ".replace.rows.tensor",
        "5 rows",
        "6 positions",
        "shape [width]",
    ),
    edit(
        "replacing with one row of two axes",
        {"positions": {"prompt": {}}, "replace": {"rows": inline(np.ones((1, WIDTH)))}},
        "TENSOR_SIZE_MISMATCH",
        ".replace.rows.tensor",
        "1 rows",
        "6 positions",
    ),
    *(
        edit(
            f"replacing row by row at {case}",
            {"positions": wire, "replace": {"rows": inline(np.ones((10, WIDTH)))}},
            "TENSOR_SIZE_MISMATCH",
            ".replace.rows.tensor",
            "10 rows",
            "not known",
            "select positions with an end",
        )
        for case, wire in [
            ("all positions", {"all": {}}),
            ("generated positions", {"generated": {}}),
            ("an open range", {"span": {"start": 2}}),
            ("a range beyond what can be generated", {"span": {"end": 11}}),
            ("token ids, while tokens are generated", {"token_ids": {"ids": [ord("h")]}}),
        ]
    ),
    Case(
        name="intervention replacing rows of prompts of two lengths",
        request=fetch(
            "a", "ab", interventions=[intervention(replace={"rows": inline(np.ones((2, WIDTH)))})]
        ),
        reason="TENSOR_SIZE_MISMATCH",
        field="interventions[0].replace.rows.tensor",
        says=("items[1]", "2 rows", "3 positions"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)


ENDS_EARLY = {"max_tokens": 5, "stop": [chr(code) for code in range(32, 127)], "min_tokens": 2}
"""Ends a sample after its second token, so that position 9 is not reached."""


@pytest.mark.parametrize(
    ("positions", "rows"), [([1, 9], 1), ([9], 0)], ids=["in part", "not at all"]
)
async def test_positions_that_a_sample_ends_before_are_passed_over_where_that_is_allowed(
    positions: list[int], rows: int
) -> None:
    where = {"list": {"positions": positions}}
    request = generate(
        interventions=[intervention(zero={}, positions=where, allow_unused=not rows)],
        readouts=[{"rows": {"sites": [site()], "positions": where}}],
        sampling=ENDS_EARLY,
    )
    async with serving(engine()) as served:
        events = await collect(served.generation.Generate(request))
    (end,) = of_kind(events, "sample_finished")
    assert [report.rows for report in end.interventions] == [rows]
    assert [*end.positions[0].positions] == positions[:rows]


async def test_a_position_that_no_sample_can_come_to_is_refused_whatever_is_allowed() -> None:
    change = intervention(zero={}, positions={"list": {"positions": [1, 90]}}, allow_unused=True)
    refused = await refusal(generate(interventions=[change], sampling=ENDS_EARLY))
    assert (refused.reason, refused.field) == (
        "POSITION_OUT_OF_RANGE",
        "interventions[0].positions",
    )


@pytest.mark.parametrize(
    "wire",
    [
        {"positions": {"token_ids": {"ids": [0]}}},  # Never generated.
        {"positions": {"list": {"positions": [9]}}},  # Not reached, for the stop string.
    ],
    ids=str,
)
async def test_an_intervention_that_changed_no_row_ends_the_stream(wire: dict[str, Any]) -> None:
    fake = engine()
    request = generate(
        interventions=[intervention(zero={}), intervention(zero={}, **wire)],
        sampling=ENDS_EARLY,
    )
    refused = await refusal(request, fake)
    assert (refused.code, refused.reason) == (INVALID, "INTERVENTION_UNUSED")
    assert refused.field == "interventions[1]"
    assert "allow_unused" in refused.message
    assert not fake.counters.running
