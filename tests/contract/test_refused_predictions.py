"""Refusals of what a capture reads besides rows: predictions, attention and summaries of it."""

from typing import Any

import grpc
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.fake import VOCABULARY_SIZE, FakeEngine
from tests.contract.harness import fetch, generate, site
from tests.contract.refusals import LAYERS, LIMITS, Case, capture, check, refusal

PREDICTIONS = {"top_k": 1}
ATTENDING = [
    {"attention": [{"layer": -1, "heads": [0]}]},
    {"attention_summary": {"layers": [-1]}},
]


def predicted(case: str, spec: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    return capture(
        f"predictions {case}", {"predictions": spec}, reason, f"predictions{field}", *says
    )


def attended(case: str, change: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    """Of the second of two patterns."""
    good = {"layer": 1, "heads": [0]}
    return capture(
        f"attention {case}",
        {"attention": [good, {**good, **change}]},
        reason,
        f"attention[1].{field}",
        *says,
    )


def summarized(case: str, spec: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    """Of a generation's second readout."""
    return Case(
        name=f"summary {case}",
        request=generate(readouts=[{"predictions": PREDICTIONS}, {"attention_summary": spec}]),
        reason=reason,
        field=f"readouts[1].attention_summary.{field}",
        says=says,
    )


CASES = [
    # Predictions
    predicted("of nothing", {}, "FIELD_REQUIRED", "", "top_k, token_ids or next_token"),
    *(
        predicted(
            f"at {hook}",
            {**PREDICTIONS, "sites": [site(), site(layer, point)]},
            "FIELD_INVALID",
            ".sites[1]",
            hook,
            "residual stream",
            "resid_post",
        )
        for hook, layer, point in [
            ("mlp_out.1", 1, site_pb2.HOOK_POINT_MLP_OUT),
            ("q.1", 1, site_pb2.HOOK_POINT_Q),
            ("logits", None, site_pb2.HOOK_POINT_LOGITS),
        ]
    ),
    predicted(
        "at a site twice",
        {**PREDICTIONS, "sites": [site(3), site(-1)]},
        "SITE_INVALID",
        ".sites[1]",
        "once",
    ),
    predicted(
        "of more tokens than there are",
        {"top_k": VOCABULARY_SIZE + 1},
        "FIELD_INVALID",
        ".top_k",
        "261",
        "0 to 260",
    ),
    predicted(
        "of a token id out of range",
        {"token_ids": [1, VOCABULARY_SIZE]},
        "TOKEN_OUT_OF_RANGE",
        ".token_ids[1]",
        "0 to 259",
    ),
    predicted(
        "of a token id twice",
        {"token_ids": [1, 2, 1]},
        "FIELD_INVALID",
        ".token_ids[2]",
        "once",
    ),
    predicted(
        "of too many token ids",
        {"token_ids": list(range(1001))},
        "FIELD_INVALID",
        ".token_ids",
        "1001",
        "at most 1000",
    ),
    predicted(
        "out of range",
        {**PREDICTIONS, "positions": {"list": {"positions": [6]}}},
        "POSITION_OUT_OF_RANGE",
        ".positions",
        "position 6",
    ),
    # Attention
    Case(
        name="attention of no layer",
        request=fetch(capture={"attention": [{"heads": [0]}]}),
        reason="FIELD_REQUIRED",
        field="readouts[0].attention.layer",
        says=("layer is not set",),
    ),
    attended("beyond the last layer", {"layer": LAYERS}, "LAYER_OUT_OF_RANGE", "layer", "0 to 3"),
    attended("before the first layer", {"layer": -5}, "LAYER_OUT_OF_RANGE", "layer", "-5"),
    attended("without heads", {"heads": []}, "FIELD_REQUIRED", "heads", "at least one"),
    attended("of a head twice", {"heads": [2, 0, 2]}, "HEAD_OUT_OF_RANGE", "heads", "once"),
    attended(
        "of a head out of range", {"heads": [4]}, "HEAD_OUT_OF_RANGE", "heads", "head 4", "0 to 3"
    ),
    attended("of the top 0", {"top_k": 0}, "FIELD_INVALID", "top_k", "1 to 64", "unset"),
    attended("of too many keys", {"top_k": 65}, "FIELD_INVALID", "top_k", "65", "1 to 64"),
    attended(
        "of queries out of range",
        {"queries": {"list": {"positions": [6]}}},
        "POSITION_OUT_OF_RANGE",
        "queries",
    ),
    attended("of an unset selector", {"queries": {}}, "FIELD_REQUIRED", "queries"),
    # Summaries
    summarized(
        "beyond the last layer",
        {"layers": [0, LAYERS]},
        "LAYER_OUT_OF_RANGE",
        "layers[1]",
        "0 to 3",
    ),
    summarized(
        "of a layer twice",
        {"layers": [LAYERS - 1, 0, -1]},
        "FIELD_INVALID",
        "layers[2]",
        "layer 3 is named twice",
        "once",
    ),
    summarized(
        "of queries out of range",
        {"queries": {"list": {"positions": [99]}}},
        "POSITION_OUT_OF_RANGE",
        "queries",
    ),
    summarized("of an unset selector", {"queries": {}}, "FIELD_REQUIRED", "queries"),
    summarized(
        "of queries that cannot come",
        {"queries": {"turns": {"roles": ["user"]}}},
        "FIELD_INVALID",
        "queries",
    ),
    summarized(
        "at too many offsets",
        {"offsets": list(range(65))},
        "FIELD_INVALID",
        "offsets",
        "65 offsets",
        "at most 64",
    ),
    summarized("at an offset twice", {"offsets": [1, 2, 1]}, "FIELD_INVALID", "offsets[2]", "once"),
    summarized(
        "at an offset that no query has",
        {"offsets": [63, 64]},
        "FIELD_INVALID",
        "offsets[1]",
        "offset 64",
        "63 tokens before",
    ),
    summarized("of too many keys", {"top_keys": 65}, "FIELD_INVALID", "top_keys", "65", "0 to 64"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)


@pytest.mark.parametrize(
    ("spec", "fake", "says"),
    [
        (
            {"predictions": {**PREDICTIONS, "sites": [site()]}},
            FakeEngine(unserved={HookPoint.FINAL_NORM: "failed"}),
            "final_norm is not served",
        ),
        (
            {"predictions": {**PREDICTIONS, "sites": [site()]}},
            FakeEngine(unserved={HookPoint.RESID_POST: "failed"}),
            "resid_post.1 is not served",
        ),
        *(
            (
                spec,
                FakeEngine(attention_unserved="its scores are biased"),
                "its scores are biased",
            )
            for spec in ATTENDING
        ),
        *(
            (
                spec,
                FakeEngine(unserved={hook_point: "failed"}),
                f"{hook_point}.3 is not served",
            )
            for hook_point in (HookPoint.Q, HookPoint.K)
            for spec in ATTENDING
        ),
    ],
)
async def test_what_the_model_does_not_serve_is_a_failed_precondition(
    spec: dict[str, Any], fake: FakeEngine, says: str
) -> None:
    refused = await refusal(fetch(capture=spec), fake)
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "SITE_NOT_SERVED"
    assert says in refused.message
    assert fake.counters.started == 0


@pytest.mark.parametrize(
    ("make", "fields", "wanted"),
    [
        # Four heads, and each of 21 queries has 21 keys of 4 bytes.
        (fetch, {}, 4 * 21 * 21 * 4),
        (fetch, {"queries": {"span": {"start": -9}}}, 4 * 9 * 21 * 4),
        (fetch, {"queries": {"span": {"end": -2}}}, 4 * 19 * 19 * 4),
        # A weight and a key each.
        (fetch, {"top_k": 8}, 4 * 21 * 8 * 8),
        # After six tokens of the prompt nine more are run.
        (generate, {}, 4 * 15 * 15 * 4),
    ],
)
async def test_patterns_over_the_byte_budget_are_refused(
    make: Any, fields: dict[str, Any], wanted: int
) -> None:
    spec = {"attention": [{"layer": 0, "heads": [0, 1, 2, 3], **fields}]}
    request = (
        fetch("short", "x" * 20, capture=spec)
        if make is fetch
        else generate(capture=spec, sampling={"max_tokens": 10})
    )
    refused = await refusal(request)
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts[0].attention")
    assert f"{wanted} bytes" in refused.message
    assert str(LIMITS.max_capture_bytes) in refused.message


async def test_queries_keys_and_predictions_count_against_the_byte_budget() -> None:
    text = "x" * 29
    attention = {
        "attention": [{"layer": each, "heads": [0], "queries": {"last": {}}} for each in range(3)]
    }
    refused = await refusal(fetch(text, capture=attention))
    # A query of 16 and 30 keys of 8.
    assert f"{3 * (16 + 30 * 8) * 4} bytes" in refused.message
    refused = await refusal(fetch(text, capture={"attention_summary": {"layers": [0, 1, 2]}}))
    # Neither is sent for a summary, but nine numbers of each of 4 heads for each query.
    assert f"{3 * 30 * 4 * 9 * 4} bytes" in refused.message
    refused = await refusal(fetch(text, capture={"predictions": {"top_k": 11}}))
    assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "readouts")
    assert f"{30 * 22 * 4} bytes" in refused.message
