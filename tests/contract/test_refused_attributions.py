"""Refusals of logit attributions."""

from dataclasses import replace
from typing import Any

import grpc
import pytest

from actserve.v1 import model_service_pb2, site_pb2
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.weights import ALL_WEIGHTS
from actserve_server.engine.fake import VOCABULARY_SIZE, FakeEngine
from actserve_server.rpc.requests import logit_attribution_fields
from tests.contract.harness import failure, fetch, serving, site
from tests.contract.refusals import LAYERS, LIMITS, Case, capture, check, refusal

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
GOOD: dict[str, Any] = {"sites": [site()], "targets": [{"token_id": 104}]}
Z = site(1, site_pb2.HOOK_POINT_Z)


def attributed(case: str, change: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    return capture(
        f"attribution {case}",
        {"logit_attribution": {**GOOD, **change}},
        reason,
        f"logit_attribution.{field}",
        *says,
    )


CASES = [
    attributed("of no site", {"sites": []}, "FIELD_REQUIRED", "sites"),
    attributed("of a site twice", {"sites": [site(), site()]}, "SITE_INVALID", "sites[1]", "twice"),
    attributed(
        "of no such layer", {"sites": [site(LAYERS)]}, "LAYER_OUT_OF_RANGE", "sites[0]", "4"
    ),
    *(
        attributed(
            f"of {hook}",
            {"sites": [site(), site(layer, getattr(site_pb2, f"HOOK_POINT_{hook.name}"))]},
            "FIELD_INVALID",
            "sites[1]",
            hook,
            "attn_out, mlp_out, z",
        )
        for hook, layer in (
            (HookPoint.MLP_IN, 1),
            (HookPoint.MLP_ACT, 1),
            (HookPoint.Q, 1),
            (HookPoint.K, 1),
            (HookPoint.V, 1),
            (HookPoint.FINAL_NORM, None),
            (HookPoint.LOGITS, None),
        )
    ),
    attributed("to nothing", {"targets": []}, "FIELD_REQUIRED", "targets"),
    attributed(
        "to too many", {"targets": [{"token_id": 1}] * 65}, "FIELD_INVALID", "targets", "65", "64"
    ),
    attributed(
        "to an unset token",
        {"targets": [{}]},
        "FIELD_REQUIRED",
        "targets[0].token_id",
        "also where it is zero",
    ),
    attributed(
        "to no token",
        {"targets": [{"token_id": 1}, {"token_id": VOCABULARY_SIZE}]},
        "TOKEN_OUT_OF_RANGE",
        "targets[1].token_id",
        str(VOCABULARY_SIZE),
        str(VOCABULARY_SIZE - 1),
    ),
    attributed(
        "less no token",
        {"targets": [{"token_id": 1, "minus_token_id": VOCABULARY_SIZE}]},
        "TOKEN_OUT_OF_RANGE",
        "targets[0].minus_token_id",
        str(VOCABULARY_SIZE),
    ),
    attributed(
        "less itself",
        {"targets": [{"token_id": 1, "minus_token_id": 1}]},
        "FIELD_INVALID",
        "targets[0].minus_token_id",
        "zero",
    ),
    attributed(
        "at no position",
        {"positions": {"list": {"positions": [99]}}},
        "POSITION_OUT_OF_RANGE",
        "positions",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_cannot_be_attributed_is_refused(case: Case) -> None:
    await check(case)


@pytest.mark.parametrize(
    ("sites", "per_row"),
    [([site()], 3), ([site(), Z], 3 + 3 * 4)],
    ids=["the stream", "heads as well"],
)
async def test_attributions_over_the_byte_budget_are_refused(
    sites: list[Any], per_row: int
) -> None:
    """A number for each target, and of z for each of four heads."""
    limits = replace(LIMITS, max_sequence_tokens=2048, max_capture_bytes=1200 * per_row * 4)
    targets = [{"token_id": token} for token in range(3)]
    spec = {"logit_attribution": {"sites": sites, "targets": targets}}
    fake = FakeEngine(limits=limits)
    refused = await refusal(fetch("x" * 1200, capture=spec), fake)
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts[0].logit_attribution")
    assert f"{1201 * per_row * 4} bytes" in refused.message


async def test_the_rows_that_are_attributed_and_their_scales_count_against_the_byte_budget() -> (
    None
):
    """The last residual as well, though it is not told."""
    spec = {"logit_attribution": {"sites": [site(0)], "targets": [{"token_id": 1}]}}
    refused = await refusal(fetch("x" * 29, capture=spec))
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts")
    assert f"{30 * 2 * 16 * 4} bytes" in refused.message


async def test_targets_of_all_readouts_together_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two readouts of one target, 16 wide, and of the second the 16 of a layer's heads.
    monkeypatch.setattr(logit_attribution_fields, "MAX_DIRECTION_BYTES", 4 * 48 - 1)
    both = [{"logit_attribution": GOOD}, {"logit_attribution": {**GOOD, "sites": [Z]}}]
    refused = await refusal(fetch(readouts=both))
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts[1].logit_attribution")
    assert f"{4 * 48} bytes" in refused.message
    assert str(4 * 48 - 1) in refused.message


@pytest.mark.parametrize(
    ("fake", "sites", "field", "says"),
    [
        (
            FakeEngine(weights=replace(ALL_WEIGHTS, attribution_unserved="it is quantized")),
            [site()],
            "",
            "it is quantized",
        ),
        (
            FakeEngine(weights=replace(ALL_WEIGHTS, head_attribution_unserved="a norm between")),
            [site(), Z],
            ".sites[1]",
            "a norm between",
        ),
        (
            FakeEngine(unserved={HookPoint.RESID_POST: "not enabled"}),
            [site(1, site_pb2.HOOK_POINT_ATTN_OUT)],
            "",
            "resid_post.3",
        ),
    ],
    ids=["nothing of it", "heads", "the last residual"],
)
async def test_a_model_that_does_not_allow_it_says_why(
    fake: FakeEngine, sites: list[Any], field: str, says: str
) -> None:
    readout = {"logit_attribution": {**GOOD, "sites": sites}}
    async with serving(fake) as served:
        call = served.generation.FetchActivations(fetch(readouts=[readout]))
        refused = await failure(call)
        model = await served.models.GetModel(model_service_pb2.GetModelRequest(name="models/fake"))
    assert (refused.code, refused.reason) == (PRECONDITION, "SITE_NOT_SERVED")
    assert refused.message.startswith(f"readouts[0].logit_attribution{field}: ")
    assert says in refused.message
    listed = model_service_pb2.FEATURE_LOGIT_ATTRIBUTION in model.model.features
    assert listed == (field != "")
