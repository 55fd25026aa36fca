"""Every refusal: its code and reason, the field it names, and a message a person can act on.

Those of positions, interventions and their operations have files of their own.
"""

from typing import Any

import grpc
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2, site_pb2
from actserve_server.engine.fake import VOCABULARY_SIZE
from tests.contract.harness import (
    fetch,
    generate,
    site,
)
from tests.contract.refusals import INVALID, LAYERS, WIDTH, Case, check, engine, refusal

ATTN_OUT = site_pb2.HOOK_POINT_ATTN_OUT


def sampling(case: str, says: tuple[str, ...], field: str | None = None, **values: Any) -> Case:
    name = field or next(iter(values))
    return Case(
        name=f"sampling {case}",
        request=generate(sampling={"max_tokens": 5, **values}),
        reason="SAMPLING_INVALID",
        field=f"sampling.{name}",
        says=says,
    )


def capture(case: str, spec: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    return Case(
        name=f"capture {case}",
        request=fetch(capture={"sites": [site()], **spec}),
        reason=reason,
        field=field,
        says=says,
    )


CASES = [
    # Model
    Case(
        name="model unknown",
        request=fetch(model="models/other"),
        reason="MODEL_NOT_FOUND",
        field="model",
        says=("models/other", "models/fake"),
        code=grpc.StatusCode.NOT_FOUND,
    ),
    Case(
        name="model without its collection",
        request=generate(model="fake"),
        reason="MODEL_NOT_FOUND",
        field="model",
        says=("models/fake",),
        code=grpc.StatusCode.NOT_FOUND,
    ),
    # Prompts
    Case(name="no items", request=fetch(prompts=[]), reason="FIELD_REQUIRED", field="items"),
    Case(
        name="too many items",
        request=fetch("a", "b", "c", "d"),
        reason="TOO_MANY_ITEMS",
        field="items",
        says=("4", "3"),
    ),
    Case(
        name="prompt without a source",
        request=fetch(prompts=[{"text": "a"}, {}]),
        reason="FIELD_REQUIRED",
        field="items[1].prompt",
        says=("text", "token_ids", "conversation"),
    ),
    Case(
        name="prompt unset", request=generate(prompt=None), reason="FIELD_REQUIRED", field="prompt"
    ),
    Case(
        name="prompt empty",
        request=fetch(prompts=[{"text": "a"}, {"token_ids": {}}]),
        reason="PROMPT_EMPTY",
        field="items[1].prompt",
    ),
    Case(
        name="token id out of range",
        request=generate(prompt={"token_ids": {"ids": [1, VOCABULARY_SIZE]}}),
        reason="TOKEN_OUT_OF_RANGE",
        field="prompt.token_ids.ids[1]",
        says=(str(VOCABULARY_SIZE), str(VOCABULARY_SIZE - 1)),
    ),
    Case(
        name="prompt too long",
        request=fetch("a", "x" * 63),
        reason="PROMPT_TOO_LONG",
        field="items[1].prompt",
        says=("64", "63"),
    ),
    Case(
        name="conversation without turns",
        request=generate(prompt={"conversation": {}}),
        reason="FIELD_REQUIRED",
        field="prompt.conversation.turns",
    ),
    Case(
        name="turn without a role",
        request=generate(prompt={"conversation": {"turns": [{"content": "x"}]}}),
        reason="FIELD_REQUIRED",
        field="prompt.conversation.turns[0].role",
        says=("system, user or assistant",),
    ),
    Case(
        name="conversation the template refuses",
        request=generate(prompt={"conversation": {"turns": [{"role": "pirate", "content": "x"}]}}),
        reason="PROMPT_NOT_RENDERABLE",
        field="prompt",
    ),
    # Sites
    capture("without sites", {"sites": []}, "FIELD_REQUIRED", "readouts[0].rows.sites"),
    capture(
        "of an unset hook point",
        {"sites": [{"layer": 1}]},
        "SITE_INVALID",
        "readouts[0].rows.sites[0].hook_point",
        "resid_post",
    ),
    capture(
        "of an unknown hook point",
        {"sites": [site(), site(1, 99)]},
        "SITE_INVALID",
        "readouts[0].rows.sites[1].hook_point",
        "99",
        "resid_post",
    ),
    capture(
        "beyond the last layer",
        {"sites": [site(LAYERS)]},
        "LAYER_OUT_OF_RANGE",
        "readouts[0].rows.sites[0]",
        "4",
        "0 to 3",
    ),
    capture(
        "before the first layer",
        {"sites": [site(-LAYERS - 1)]},
        "LAYER_OUT_OF_RANGE",
        "readouts[0].rows.sites[0]",
        "-5",
    ),
    capture(
        "without a layer",
        {"sites": [site(None)]},
        "SITE_INVALID",
        "readouts[0].rows.sites[0]",
        "0 to 3",
    ),
    capture(
        "of the embedding at a layer",
        {"sites": [site(0, site_pb2.HOOK_POINT_EMBEDDING)]},
        "SITE_INVALID",
        "readouts[0].rows.sites[0]",
        "leave it unset",
    ),
    capture(
        "of the logits at a layer",
        {"sites": [site(0, site_pb2.HOOK_POINT_LOGITS)]},
        "SITE_INVALID",
        "readouts[0].rows.sites[0]",
        "logits has no layer",
    ),
    capture(
        "of a site twice",
        {"sites": [site(3), site(-1)]},
        "SITE_INVALID",
        "readouts[0].rows.sites[1]",
        "resid_post.3",
        "once",
    ),
    Case(
        name="capture of an unserved site",
        request=fetch(capture={"sites": [site(1, site_pb2.HOOK_POINT_ATTN_OUT)]}),
        reason="SITE_NOT_SERVED",
        field="readouts[0].rows.sites[0]",
        says=("attn_out.1", "not verified"),
        code=grpc.StatusCode.FAILED_PRECONDITION,
    ),
    capture(
        "of an unknown element type",
        {"element_type": 77},
        "TENSOR_ELEMENT_TYPE_UNKNOWN",
        "readouts[0].rows.element_type",
        "77",
        "F32, F16, BF16",
    ),
    # Sampling
    sampling("temperature below zero", ("-1", "from 0.01 to 2"), temperature=-1),
    sampling("temperature too low", ("0.001", "from 0.01 to 2"), temperature=0.001),
    sampling("temperature too high", ("2.5", "from 0.01 to 2"), temperature=2.5),
    sampling("a seed below zero", ("-1", "0 or above"), "seed", seed=-1),
    sampling("temperature not a number", ("nan",), temperature=float("nan")),
    sampling("temperature infinite", ("inf",), temperature=float("inf")),
    sampling("top_p zero", ("above 0",), top_p=0.0),
    sampling("top_p above one", ("at most 1",), top_p=1.5),
    sampling("top_p not a number", ("nan",), top_p=float("nan")),
    sampling("top_k zero", ("1 or above", "unset"), top_k=0),
    sampling("min_p below zero", ("0 to 1",), min_p=-0.5),
    sampling("min_p above one", ("0 to 1",), min_p=1.5),
    sampling("repetition_penalty zero", ("above 0",), repetition_penalty=0.0),
    sampling("repetition_penalty infinite", ("above 0",), repetition_penalty=float("inf")),
    sampling("max_tokens zero", ("1 or above",), max_tokens=0),
    sampling("max_tokens beyond the context", ("59", "6 tokens", "64", "58"), max_tokens=59),
    sampling("min_tokens above max_tokens", ("6", "5"), min_tokens=6),
    sampling("logprobs above the limit", ("21", "20"), logprobs=21),
    sampling("samples zero", ("1 or above",), samples=0),
    sampling("a stop string empty", ("1",), "stop[1]", stop=["a", ""]),
    sampling(
        "a stop token out of range", ("260", "259"), "stop_token_ids[0]", stop_token_ids=[260]
    ),
    sampling("too many stop strings", ("129", "128"), stop=["a"] * 129),
    sampling("a stop string too long", ("1026", "1024"), "stop[0]", stop=["ü" * 513]),
    sampling("too many stop tokens", ("1025", "1024"), stop_token_ids=[65] * 1025),
    sampling("presence_penalty too low", ("-2.5", "-2 to 2"), presence_penalty=-2.5),
    sampling("presence_penalty not a number", ("nan",), presence_penalty=float("nan")),
    sampling("frequency_penalty too high", ("2.5", "-2 to 2"), frequency_penalty=2.5),
    sampling("frequency_penalty infinite", ("inf",), frequency_penalty=float("inf")),
    *(
        sampling(
            f"a bias of {bias}",
            (str(bias), "-100 to 100"),
            "logit_bias[1].bias",
            logit_bias=[{"token_id": 0, "bias": 0}, {"token_id": 1, "bias": bias}],
        )
        for bias in (101.0, -101.0, float("nan"), float("inf"))
    ),
    sampling(
        "a bias of a token out of range",
        ("260", "259"),
        "logit_bias[0].token_id",
        logit_bias=[{"token_id": 260, "bias": 1}],
    ),
    sampling(
        "two biases of a token",
        ("7", "index 0", "once"),
        "logit_bias[2].token_id",
        logit_bias=[{"token_id": token, "bias": 1} for token in (7, 8, 7)],
    ),
    *(
        Case(
            name=f"a bias without {name}",
            request=generate(sampling={"logit_bias": [{"token_id": 0, "bias": 0}, rest]}),
            reason="FIELD_REQUIRED",
            field=f"sampling.logit_bias[1].{name}",
            says=(name, "not set"),
        )
        for name, rest in {"token_id": {"bias": 1}, "bias": {"token_id": 1}}.items()
    ),
    sampling("too many biases", ("1025", "1024"), logit_bias=[{}] * 1025),
    sampling(
        "an allowed token out of range",
        ("260", "259"),
        "allowed_token_ids[1]",
        allowed_token_ids=[0, 260],
    ),
    sampling(
        "an allowed token twice", ("7", "index 0"), "allowed_token_ids[1]", allowed_token_ids=[7, 7]
    ),
    sampling("too many allowed tokens", ("8193", "8192"), allowed_token_ids=[1] * 8193),
    sampling("too many bad words", ("65", "64"), bad_words=["a"] * 65),
    sampling("a bad word empty", ("1", "leave it out"), "bad_words[1]", bad_words=["a", ""]),
    sampling("a bad word without tokens", ("'  '",), "bad_words[1]", bad_words=["a", "  "]),
    sampling("a bad word too long", ("257", "256"), "bad_words[0]", bad_words=["a" * 257]),
    sampling(
        "bad words that leave no allowed token",
        ("of 2", "allow one more"),
        "allowed_token_ids",
        allowed_token_ids=[97, 98],
        bad_words=["a", "cab"],
    ),
    sampling(
        "only end tokens allowed before min_tokens",
        ("of 2", "min_tokens"),
        "allowed_token_ids",
        allowed_token_ids=[257, 65],
        stop_token_ids=[65],
        min_tokens=1,
    ),
    *(
        sampling(
            f"repetition with {' '.join(f'{name} {value}' for name, value in changed.items())}",
            (str(next(iter(changed.values()))), says),
            f"repetition_detection.{next(iter(changed))}",
            repetition_detection={"max_pattern_size": 4, "min_count": 3, **changed},
        )
        for changed, says in (
            ({"max_pattern_size": 0}, "1 to 32"),
            ({"max_pattern_size": 33}, "1 to 32"),
            ({"min_pattern_size": 0}, "1 to 4"),
            ({"min_pattern_size": 5}, "1 to 4"),
            ({"min_count": 1}, "2 to 32"),
            ({"min_count": 33}, "2 to 32"),
        )
    ),
    *(
        Case(
            name=f"structured output by {form}",
            request=generate(sampling={"structured_output": {form: value}}),
            reason="FEATURE_NOT_SERVED",
            field="sampling.structured_output",
            says=("structured_output", "not serve it yet"),
            code=grpc.StatusCode.UNIMPLEMENTED,
        )
        for form, value in (
            ("json_schema", "{}"),
            ("regex", ""),
            ("choices", {"texts": ["yes", "no"]}),
            ("grammar", 'root ::= "a"'),
        )
    ),
    Case(
        name="structured output by nothing",
        request=generate(sampling={"structured_output": {}}),
        reason="FEATURE_NOT_SERVED",
        field="sampling.structured_output",
        code=grpc.StatusCode.UNIMPLEMENTED,
    ),
    sampling("a seed with no room", ("seed + 1",), "seed", seed=(1 << 63) - 1, samples=2),
    Case(
        name="too many samples",
        request=generate(sampling={"samples": 3}),
        reason="TOO_MANY_SAMPLES",
        field="sampling.samples",
        says=("3", "2"),
    ),
    # Budgets
    Case(
        name="fetch over the byte budget",
        request=fetch("x" * 40),
        reason="CAPTURE_TOO_LARGE",
        field="readouts",
        says=(str(41 * WIDTH * 4), str(40 * WIDTH * 4), "fewer sites"),
    ),
    Case(
        name="generation over the byte budget",
        request=generate(sampling={"max_tokens": 36}, capture={"sites": [site()]}),
        reason="CAPTURE_TOO_LARGE",
        field="readouts",
        says=(str(41 * WIDTH * 4), "max_tokens"),
    ),
    # Models
    Case(
        name="get without a name",
        request=model_service_pb2.GetModelRequest(),
        reason="FIELD_REQUIRED",
        field="name",
    ),
    Case(
        name="get of an unknown model",
        request=model_service_pb2.GetModelRequest(name="models/other"),
        reason="MODEL_NOT_FOUND",
        field="name",
        code=grpc.StatusCode.NOT_FOUND,
    ),
    Case(
        name="list with a negative page size",
        request=model_service_pb2.ListModelsRequest(page_size=-1),
        reason="FIELD_INVALID",
        field="page_size",
    ),
    Case(
        name="list with a foreign page token",
        request=model_service_pb2.ListModelsRequest(page_token="x"),
        reason="FIELD_INVALID",
        field="page_token",
    ),
    Case(
        name="tokenize without a source",
        request=model_service_pb2.TokenizeRequest(),
        reason="FIELD_REQUIRED",
        field="prompt",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_refusal_names_reason_field_and_fix(case: Case) -> None:
    await check(case)


async def test_not_found_names_the_resource() -> None:
    refused = await refusal(model_service_pb2.GetModelRequest(name="models/other"))
    resource = refused.details["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == (
        "actserve.v1.Model",
        "models/other",
    )


async def test_an_unserved_site_is_a_failed_precondition_of_that_field() -> None:
    refused = await refusal(fetch(capture={"sites": [site(1, site_pb2.HOOK_POINT_ATTN_OUT)]}))
    violation = refused.details["PreconditionFailure"].violations[0]
    assert (violation.type, violation.subject) == ("SITE_NOT_SERVED", "readouts[0].rows.sites[0]")


async def test_metadata_has_value_and_limit() -> None:
    refused = await refusal(fetch(capture={"sites": [site(9)]}))
    assert dict(refused.details["ErrorInfo"].metadata) == {"layer": "9", "layer_count": "4"}


async def test_a_megabyte_quoted_from_a_request_does_not_break_the_status() -> None:
    refused = await refusal(model_service_pb2.GetModelRequest(name="ü" * 1_000_000))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_bytes", "field"),
    [
        # Field 99, a varint: of the request, and of an intervention in it.
        (generate().SerializeToString() + b"\x98\x06\x01", ""),
        (generate().SerializeToString() + b"\x22\x03\x98\x06\x01", "interventions[0]"),
    ],
    ids=["request", "intervention"],
)
async def test_a_field_of_a_newer_contract_is_refused_not_ignored(
    request_bytes: bytes, field: str
) -> None:
    newer = pb.GenerateRequest.FromString(request_bytes)
    refused = await refusal(newer)
    assert (refused.code, refused.reason) == (INVALID, "FIELD_UNKNOWN")
    assert refused.field == field
    assert "99" in refused.message
    assert "upgrade" in refused.message


ENGINE_FAULTS = [
    ({"dead": True}, grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD"),
    ({"incomplete": True}, grpc.StatusCode.INTERNAL, "CAPTURE_INCOMPLETE"),
    ({"unexpected": "secret prompt"}, grpc.StatusCode.INTERNAL, "INTERNAL"),
]


@pytest.mark.parametrize(("fault", "code", "reason"), ENGINE_FAULTS)
@pytest.mark.parametrize("make", [fetch, generate])
async def test_a_failing_engine_ends_the_stream_with_its_reason(
    make: Any, fault: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    fake = engine()
    for name, value in fault.items():
        setattr(fake.faults, name, value)
    refused = await refusal(make(capture={"sites": [site()]}), fake)
    assert (refused.code, refused.reason) == (code, reason)
    assert "secret" not in str(refused)
    assert not fake.counters.running
