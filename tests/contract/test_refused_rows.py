"""Refusals of what is explained, scored or measured, and of what does it: names, sites, rows and
texts."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2, tensor_pb2
from actserve_server.domain.sites import HookPoint, Site
from tests.contract.harness import site, tensor
from tests.contract.nla_refusals import (
    EDIT,
    INVALID,
    MINE,
    UNMET,
    case,
    check,
    edited,
    refused,
    tiny,
)
from tests.contract.nlas import (
    ROWS,
    WIDTH,
    compare,
    explain,
    explain_text,
    reconstruct,
    score,
    set_baseline,
)
from tests.contract.refusals import Case

ZERO = np.where(np.arange(5)[:, None] == 3, 0, ROWS)
NAN = np.where(np.arange(5)[:, None] == 2, np.nan, ROWS)
MANY = np.ones((7, WIDTH))


def of_rows(name: str, wire: Any, reason: str, field: str, *says: str) -> list[Case]:
    """What is refused of rows, wherever they are sent."""
    requests = {
        "explained": explain(activations=wire),
        "compared": compare(ROWS, ROWS * 2, activations=wire),
        "scored": score(ROWS, *"abcde", activations=wire),
        "measured": set_baseline(MINE, activations=wire),
    }
    return [
        case(f"{name} when {what}", request, reason, f"activations{field}", *says)
        for what, request in requests.items()
    ]


def of_site(name: str, where: Any, reason: str, field: str, *says: str) -> list[Case]:
    """What is refused of a site, wherever one is sent."""
    requests = {
        "explained": explain(site=where),
        "compared": compare(ROWS, ROWS * 2, site=where),
        "reconstructed": reconstruct("a", site=where),
        "scored": score(ROWS[:1], "a", site=where),
        "measured": set_baseline(MINE, site=where),
    }
    return [
        case(f"{name} when {what}", request, reason, field, *says)
        for what, request in requests.items()
    ]


def of_name(name: str, nla: str, *says: str) -> list[Case]:
    """What is refused of the name of an NLA, wherever one is sent."""
    requests = {
        "explain": explain(nla=nla),
        "explain a text": explain_text(nla=nla),
        "compare": compare(ROWS, ROWS * 2, nla=nla),
        "reconstruct": reconstruct("a", nla=nla),
        "score": score(ROWS[:1], "a", nla=nla),
        "edit": edited(nla=nla),
    }
    return [
        case(
            f"{name} to {what}",
            request,
            "NLA_NOT_FOUND",
            "interventions[1].add.vector.edit.nla" if what == "edit" else "nla",
            *says,
        )
        for what, request in requests.items()
    ]


CASES = [
    # Names and sites
    *of_name("an unknown name", "models/fake/nlas/other", "other", "models/fake/nlas/tiny"),
    *of_name("a name without its collection", "tiny", "'tiny'", "models/fake/nlas/tiny"),
    *of_name("a name without an id", "models/fake/nlas/", "models/fake/nlas/tiny"),
    *of_site("no site", None, "SITE_INVALID", "site.hook_point", "not set"),
    *of_site("no layer", site(None), "SITE_INVALID", "site", "needs a layer"),
    *of_site("a layer beyond", site(4), "LAYER_OUT_OF_RANGE", "site", "layer 4", "0 to 3"),
    *of_site("another layer", site(2), "SITE_NOT_SERVED", "site", "resid_post.2", "resid_post.1"),
    *of_site(
        "another hook point",
        site(1, site_pb2.HOOK_POINT_RESID_PRE),
        "SITE_NOT_SERVED",
        "site",
        "resid_pre.1",
    ),
    # Rows
    *of_rows("no rows", None, "FIELD_REQUIRED", "", "[rows, 16]"),
    *of_rows("rows of no type", {"shape": [1, 1]}, "TENSOR_ELEMENT_TYPE_UNKNOWN", ".element_type"),
    *of_rows("narrow rows", tensor(np.ones((2, 8))), "TENSOR_WIDTH_MISMATCH", ".shape", "16 wide"),
    *of_rows("a row alone", tensor(ROWS[0]), "TENSOR_WIDTH_MISMATCH", ".shape", "[n, 16]"),
    *of_rows("an empty matrix", tensor(ROWS[:0]), "TENSOR_WIDTH_MISMATCH", ".shape", "at least 1"),
    *of_rows(
        "rows of too few bytes",
        {"element_type": tensor_pb2.ELEMENT_TYPE_F32, "shape": [1, 16], "data": b"1234"},
        "TENSOR_SIZE_MISMATCH",
        ".data",
        "64 bytes",
    ),
    *of_rows("rows not finite", tensor(NAN), "TENSOR_NOT_FINITE", ".data", "2, 0", "nan"),
    *of_rows("too many rows", tensor(MANY), "TOO_MANY_ROWS", "", "7 rows", "at most 6"),
    *(
        item
        for item in of_rows("a zero row", tensor(ZERO), "TENSOR_DEGENERATE", "", "row 3 is zero")
        if "compared" not in item.name
    ),
    # Positions
    case(
        "too few positions", explain(positions=[1, 2]), "FIELD_INVALID", "positions", "2", "5 rows"
    ),
    case(
        "positions out of order",
        explain(positions=[1, 2, 5, 4, 6]),
        "FIELD_INVALID",
        "positions",
        "ascending",
    ),
    case(
        "a position twice",
        explain(positions=[1, 2, 2, 4, 6]),
        "FIELD_INVALID",
        "positions",
        "ascending",
    ),
    # Comparing
    case(
        "no reference",
        compare(ROWS, ROWS, reference=None),
        "FIELD_REQUIRED",
        "reference",
        "[rows, 16]",
    ),
    case(
        "a reference of fewer rows",
        compare(ROWS, ROWS[:4]),
        "TENSOR_SIZE_MISMATCH",
        "reference.shape",
        "4 rows",
        "from 5",
    ),
    case(
        "a narrow reference",
        compare(ROWS, MANY[:5, :8]),
        "TENSOR_WIDTH_MISMATCH",
        "reference.shape",
    ),
    case("a reference not finite", compare(ROWS, NAN), "TENSOR_NOT_FINITE", "reference.data"),
    case(
        "a difference of zero",
        compare(ROWS, np.where(np.arange(5)[:, None] == 4, ROWS, 2 * ROWS)),
        "TENSOR_DEGENERATE",
        "activations",
        "row 4 equals its reference",
    ),
    case(
        "a difference that overflows",
        compare(np.full((1, WIDTH), 3e38), np.full((1, WIDTH), -3e38)),
        "TENSOR_NOT_FINITE",
        "activations",
        "row 0 overflows",
    ),
    # Texts
    *(
        item
        for what, make in [
            ("reconstructed", lambda *texts: reconstruct(*texts)),
            ("scored", lambda *texts: score(ROWS, *texts)),
        ]
        for item in [
            case(f"no texts {what}", make(), "FIELD_REQUIRED", "texts", "send one"),
            case(f"an empty text {what}", make("a", ""), "FIELD_REQUIRED", "texts[1]", "empty"),
            case(f"a blank text {what}", make(" \n"), "FIELD_REQUIRED", "texts[0]"),
            case(f"too many texts {what}", make(*"abcdefg"), "TOO_MANY_ROWS", "texts", "7", "6"),
        ]
    ),
    case("texts for other rows", score(ROWS, "a"), "FIELD_INVALID", "texts", "1 texts for 5 rows"),
    case(
        "an unknown baseline of scores",
        score(ROWS[:1], "a", baseline=MINE),
        "BASELINE_NOT_FOUND",
        "baseline",
    ),
    # Baselines
    case("a baseline without a name", set_baseline(""), "FIELD_REQUIRED", "name"),
    *(
        case(f"a baseline called {name}", set_baseline(name), "FIELD_INVALID", "name")
        for name in [
            "mine",
            "models/fake/nlas/tiny",
            "models/fake/nlas/tiny/baselines/",
            "models/fake/nlas/tiny/baselines/Mine",
            "models/fake/nlas/tiny/baselines/a/b",
            "models/fake/nlas//baselines/mine",
            "models/fake/nlas/tiny/baselines/" + "a" * 64,
        ]
    ),
    case(
        "a baseline of an unknown nla",
        set_baseline("models/fake/nlas/other/baselines/a"),
        "NLA_NOT_FOUND",
        "name",
    ),
    case("a baseline of one row", set_baseline(MINE, ROWS[:1]), "TENSOR_DEGENERATE", "activations"),
    case(
        "a baseline of rows all alike",
        set_baseline(MINE, MANY[:4]),
        "TENSOR_DEGENERATE",
        "activations",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case, tiny())


async def test_which_of_several_is_meant_must_be_said() -> None:
    elsewhere = tiny(id="third", site=Site(HookPoint.RESID_POST, 2))
    loaded = tiny(id="first"), tiny(id="second"), elsewhere
    for request, field, meant in (
        (explain(), "nla", ("first", "second")),
        (explain_text(), "nla", ("first", "second", "third")),
        (edited(), f"{EDIT}.nla", ("first", "second")),
    ):
        found = await refused(request, *loaded)
        assert (found.code, found.reason) == (INVALID, "FIELD_REQUIRED")
        assert found.field == field
        names = ", ".join(f"models/-/nlas/{each}" for each in meant)
        assert found.message.endswith(f"name one of {names}")


async def test_not_found_names_the_resource() -> None:
    found = await refused(explain(nla="models/fake/nlas/other"), tiny())
    resource = found.details["ResourceInfo"]
    assert resource.resource_type == "actserve.v1.Nla"
    assert resource.resource_name.endswith("other")


async def test_one_nla_of_the_site_is_found_among_those_of_others() -> None:
    pair = tiny(id="first"), tiny(id="second", site=Site(HookPoint.RESID_POST, 2))
    found = await refused(explain(site=site(0)), *pair)
    assert (found.code, found.reason) == (UNMET, "SITE_NOT_SERVED")
    assert "resid_post.1, resid_post.2" in found.message
