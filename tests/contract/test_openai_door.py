"""The OpenAI door: what vLLM's classes answer, and what actserve adds, is what Generate tells."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import structlog
from google.protobuf import json_format
from prometheus_client import REGISTRY

from actserve.v1 import intervention_pb2
from actserve_server.config import ConfigError
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.openai import embeddings
from tests.contract import vectors
from tests.contract.harness import (
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create, full, numbers
from tests.contract.openai_door import MODEL, Door, conversation, door, with_vllm
from tests.contract.refusals import WIDTH

pytestmark = pytest.mark.filterwarnings("default")  # vLLM warns of its own affairs.

ALWAYS, NEVER = -1e6, 1e6
STOP = {"threshold": ALWAYS, "stop": {}}


@pytest.fixture
async def opened() -> AsyncIterator[Door]:
    async with door() as running:
        yield running


@pytest.fixture
def logged() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]


async def told(opened: Door, content: str = "hello", **fields: Any) -> list[Any]:
    """The events of the same over gRPC."""
    request = generate(prompt=conversation(content), **fields)
    return await collect(opened.served.generation.Generate(request))


def ids(events: list[Any]) -> list[int]:
    return [id_ for e in events if e.WhichOneof("event") == "tokens" for id_ in e.tokens.ids]


def text(events: list[Any]) -> str:
    return "".join(e.tokens.text for e in events if e.WhichOneof("event") == "tokens")


def as_json(**fields: Any) -> dict[str, Any]:
    """An intervention as it is sent over HTTP."""
    message = intervention_pb2.Intervention(**fields)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


async def test_what_is_changed_over_http_is_in_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    change = as_json(**addition(numbers(WIDTH)))
    async with door(audit_log=path) as running:
        await running.chat("hello")
        await running.chat("hello", extra={"steering": [change]})
    written = _text_of(path)
    (line,) = map(json.loads, written.splitlines())
    assert (line["method"], line["code"]) == ("/v1/chat/completions", "OK")
    (told,) = line["interventions"]
    assert (told["operation"], told["receipt"]["runs"]) == ("add", 1)
    assert told["receipt"]["changed_rows"] > 0
    assert "hello" not in written


async def test_monitors_of_the_operator_watch_and_steer_over_http_too(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("none", "vision", Role.READER),
        ("of-an-operator", "platform", Role.OPERATOR),
    )
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("tenants: {vision: {monitors: [platform/steer]}}")
    change = addition(numbers(WIDTH) * 50)
    level = {"threshold": ALWAYS, "intervene": {"interventions": [change]}}
    request = create("steer", upper=level, watch={"named_only": True})
    async with door(token_file=tokens, tenant_file=tenants) as running:
        await running.served.monitors.CreateMonitor(request, metadata=bearing("of-an-operator"))
        answer = await running.chat("hello")
    (choice,) = answer.actserve["choices"]
    (changed,) = choice["monitor_interventions"]
    assert changed["monitor"] == full("platform.steer")


def _text_of(path: Path) -> str:
    return path.read_text()


async def test_a_chat_is_what_generate_gives(opened: Door) -> None:
    events = await told(opened)
    answer = await opened.chat()
    (choice,) = answer.choices
    assert choice.message.content == text(events)
    assert choice.token_ids == ids(events)
    assert answer.prompt_token_ids == list(events[0].started.prompt.ids)
    assert (choice.finish_reason, choice.stop_reason) == ("length", None)
    assert answer.usage.completion_tokens == 5
    assert answer.actserve["choices"] == [{"index": 0}]
    assert answer.id == f"chatcmpl-{answer.actserve['request_id']}"


async def test_ids_are_the_servers_own(opened: Door) -> None:
    answer = await opened.chat(extra_headers={"X-Request-Id": "mine"}, extra={"request_id": "mine"})
    assert answer.id == f"chatcmpl-{answer.actserve['request_id']}" != "chatcmpl-mine"


async def test_a_stream_says_the_same_part_by_part(opened: Door) -> None:
    whole = await opened.chat(stop=["\x00never"])
    parts = await opened.stream()
    said = [part.choices[0].delta.content or "" for part in parts]
    tokens = [token for part in parts[1:] for token in part.choices[0].token_ids]
    assert "".join(said) == whole.choices[0].message.content
    assert tokens == whole.choices[0].token_ids
    assert [part.choices[0].finish_reason for part in parts] == [None] * 5 + ["length"]
    assert parts[-1].actserve["choices"] == [{"index": 0}]
    assert not any(hasattr(part, "actserve") for part in parts[:-1])


async def test_completions_of_several_prompts_and_samples_come_in_order(opened: Door) -> None:
    alone = [await opened.complete(prompt, max_tokens=4) for prompt in ("one", "two")]
    both = await opened.complete(["one", "two"], max_tokens=4)
    assert [c.text for c in both.choices] == [each.choices[0].text for each in alone]
    seeded: dict[str, Any] = {"max_tokens": 4, "temperature": 1.0}
    one = [(await opened.complete("two", seed=seed, **seeded)).choices[0].text for seed in (3, 4)]
    both = await opened.complete(["one", "two"], n=2, seed=3, **seeded)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[2:]] == one, "each sample with a seed of its own"
    assert [each["index"] for each in both.actserve["choices"]] == [0, 1, 2, 3]
    by_id = await opened.complete([list(b"one")], max_tokens=4)
    assert by_id.choices[0].prompt_token_ids == list(b"one"), "as they are"


async def test_ends_are_told_as_vllm_tells_them(opened: Door) -> None:
    plain = await opened.complete(max_tokens=8, extra={"skip_special_tokens": False})
    (choice,) = plain.choices
    stop = choice.text[3:5]
    stopped = (await opened.complete(max_tokens=8, stop=[stop])).choices[0]
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == (
        choice.text[: choice.text.index(stop)],
        "stop",
        stop,
    )
    token = choice.token_ids[2]
    stopped = (await opened.complete(max_tokens=8, extra={"stop_token_ids": [token]})).choices[0]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", token)


async def test_log_probabilities_are_those_of_generate(opened: Door) -> None:
    events = await told(opened, sampling={"max_tokens": 3, "temperature": 0, "logprobs": 2})
    wanted = [e.tokens.logprobs[0] for e in events if e.WhichOneof("event") == "tokens"]
    answer = await opened.chat(max_tokens=3, logprobs=True, top_logprobs=2)
    got = answer.choices[0].logprobs.content
    assert [each.logprob for each in got] == pytest.approx([each.logprob for each in wanted])
    assert [[t.logprob for t in each.top_logprobs] for each in got] == [
        pytest.approx([t.logprob for t in each.top]) for each in wanted
    ]
    parts = await opened.stream(max_tokens=3, logprobs=True, top_logprobs=2)
    streamed = [each for part in parts[1:] for each in part.choices[0].logprobs.content]
    assert streamed == got


async def test_the_model_is_listed_by_its_id(opened: Door) -> None:
    models: Any = await opened.client.models.list()
    (model,) = models.data
    assert (model.id, model.root, model.max_model_len) == (MODEL, MODEL, 2048)


async def test_a_steered_chat_is_the_steered_generation_with_its_receipts(opened: Door) -> None:
    change = addition(9 * numbers(WIDTH), coefficient=2.0)
    events = await told(opened, interventions=[change])
    plain, steered = await opened.chat(), await opened.chat(extra={"steering": [as_json(**change)]})
    assert steered.choices[0].token_ids == ids(events) != plain.choices[0].token_ids
    (receipt,) = steered.actserve["choices"][0]["interventions"]
    assert receipt["rows"] == receipt["changed_rows"] == len(steered.prompt_token_ids) + 4
    parts = await opened.stream(extra={"steering": [as_json(**change)]})
    assert parts[-1].actserve["choices"] == steered.actserve["choices"]


async def test_a_stored_vector_is_named_and_added_where_it_was_made(opened: Door) -> None:
    values = 9 * vectors.rows(2)
    await opened.served.vectors.CreateSteeringVector(vectors.create("joy", values))
    source = {"steering_vector": vectors.full("joy")}
    for entry, layers in (
        ({"name": "joy", "coefficient": 3}, (1, 2)),
        ({"name": vectors.full("joy"), "coefficient": 3, "sites": ["resid_post.2"]}, (2,)),
    ):
        wanted = {
            "sites": [site(layer) for layer in layers],
            "add": {"vector": source, "coefficient": 3.0},
        }
        events = await told(opened, interventions=[wanted])
        answer = await opened.chat(extra={"steering": [entry]})
        assert answer.choices[0].token_ids == ids(events)


async def test_positions_name_turns_and_texts_of_the_messages(opened: Door) -> None:
    for positions in ({"turns": {"turns": [0]}}, {"text": {"text": "ell"}}):
        change = {**addition(9 * numbers(WIDTH)), "positions": positions}
        events = await told(opened, interventions=[change])
        answer = await opened.chat(extra={"steering": [as_json(**change)]})
        assert answer.choices[0].token_ids == ids(events)
        (receipt,) = answer.actserve["choices"][0]["interventions"]
        assert receipt["rows"] == (5 if "turns" in positions else 3)


async def test_monitors_watch_score_and_flag(opened: Door) -> None:
    flags = {"threshold": ALWAYS, "flag": True}
    await opened.served.monitors.CreateMonitor(create(upper=flags, watch={"named_only": True}))
    assert "monitor_scores" not in (await opened.chat()).actserve["choices"][0]
    answer = await opened.chat(user="ann", extra={"monitors": ["harm"]})
    (choice,) = answer.actserve["choices"]
    (score,) = choice["monitor_scores"]
    assert (score["monitor"], score["level"]) == (full("harm"), "ALERT_LEVEL_UPPER")
    assert score["tokens"] == len(answer.prompt_token_ids) + 4
    (alert,) = choice["alerts"]
    assert (alert["position"], alert["end_user"]) == (0, "ann")
    assert alert["watched_call_id"] == answer.actserve["request_id"]


async def test_what_a_monitor_changes_is_told_apart_from_the_steering_of_the_request(
    opened: Door,
) -> None:
    change = addition(9 * numbers(WIDTH))
    intervene = {"threshold": ALWAYS, "intervene": {"interventions": [change]}}
    await opened.served.monitors.CreateMonitor(create(upper=intervene, positions={"prompt": {}}))
    answer = await opened.chat()
    (choice,) = answer.actserve["choices"]
    assert "interventions" not in choice
    (changed,) = choice["monitor_interventions"]
    assert (changed["monitor"], changed["level"]) == (full("harm"), "ALERT_LEVEL_UPPER")
    assert changed["first_position"] == len(answer.prompt_token_ids)
    # Of five tokens the last one is not run.
    assert [each["rows"] for each in changed["interventions"]] == [4]
    parts = await opened.stream()
    assert parts[-1].actserve["choices"] == answer.actserve["choices"]


async def test_a_monitor_that_stops_ends_the_choice_and_says_so(opened: Door) -> None:
    plain = await opened.chat()
    prompt = len(plain.prompt_token_ids)
    stops = create(upper=STOP, positions={"span": {"start": prompt + 1}})
    await opened.served.monitors.CreateMonitor(stops)
    answer, parts = await opened.chat(), await opened.stream()
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.stop_reason) == ("content_filter", full("harm"))
    assert choice.token_ids == plain.choices[0].token_ids[:2]
    assert answer.actserve["choices"][0]["monitor"] == full("harm")
    assert "".join(p.choices[0].delta.content or "" for p in parts) == choice.message.content
    assert parts[-1].choices[0].finish_reason == "content_filter"
    assert parts[-1].choices[0].stop_reason == full("harm")
    assert parts[-1].actserve["choices"][0]["monitor"] == full("harm")


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_a_monitor_that_stops_before_the_first_token_ends_the_stream_too(
    opened: Door, kind: str
) -> None:
    await opened.served.monitors.CreateMonitor(create(upper=STOP))
    if kind == "chat":
        parts = await opened.stream(n=2, temperature=1)
    else:
        parts = [part async for part in await opened.complete(n=2, temperature=1, stream=True)]
    ended = {p.choices[0].index: p for p in parts if p.choices[0].finish_reason}
    assert set(ended) == {0, 1}
    for index, part in ended.items():
        assert part.choices[0].finish_reason == "content_filter"
        assert part.choices[0].stop_reason == full("harm")
        assert part.actserve["choices"][0]["index"] == index


async def test_readouts_are_answered_as_json(opened: Door) -> None:
    events = await told(opened, capture={"sites": [site(1)]})
    wanted = matrices(events)[0, 0]
    readout = {"rows": {"sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 1}]}}
    answer = await opened.chat(extra={"readouts": [readout]})
    chunks = [each["activations"] for each in answer.actserve["choices"][0]["readouts"]]
    positions = [position for each in chunks for position in each["positions"]]
    data = b"".join(base64.b64decode(each["rows"]["data"]) for each in chunks)
    assert positions == wanted[0]
    assert np.array_equal(np.frombuffer(data, "<f4").reshape(-1, WIDTH), wanted[1])


async def test_embeddings_are_rows_of_a_site(opened: Door) -> None:
    inputs = ["hello", [104, 105]]
    prompts = [{"text": "hello"}, {"token_ids": {"ids": [104, 105]}}]
    for pooling, reduction in (("mean", 2), ("last", 1)):
        rows = {"sites": [site(2)], "reduction": reduction}
        wanted = matrices(
            await collect(
                opened.served.generation.FetchActivations(fetch(prompts=prompts, capture=rows))
            )
        )
        answer = await opened.client.embeddings.create(
            model=MODEL,
            input=inputs,
            extra_body={"site": "resid_post.2", "pooling": pooling},  # type: ignore[arg-type]
        )
        for index, told in enumerate(answer.data):
            assert np.array_equal(told.embedding, wanted[index, 0][1][0])
        assert answer.usage.prompt_tokens == 6 + 2
    default = await opened.client.embeddings.create(
        model=MODEL, input="hello", encoding_format="float"
    )
    last = await opened.client.embeddings.create(
        model=MODEL, input="hello", extra_body={"site": "resid_post.3"}
    )
    assert default.data[0].embedding == last.data[0].embedding
    zero = {"sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 3}], "zero": {}}
    steered = await opened.client.embeddings.create(
        model=MODEL, input="hello", extra_body={"steering": [zero]}
    )
    assert not any(steered.data[0].embedding)


NOT_EMBEDDED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"input": []}, 400, "FIELD_INVALID", "input"),
    ({"input": [[]]}, 400, "FIELD_INVALID", "input[0]"),
    ({"input": ["a", 1]}, 400, "FIELD_INVALID", "input[1]"),
    ({"input": [[1], [300]]}, 400, "TOKEN_OUT_OF_RANGE", "input[1]"),
    ({"input": ["a"] * 1025}, 400, "TOO_MANY_ITEMS", "input"),
    ({"input": "\ud800"}, 400, "REQUEST_MALFORMED", None),
    ({"dimensions": 4}, 400, "FIELD_UNKNOWN", "dimensions"),
    ({"encoding_format": "text"}, 400, "FIELD_INVALID", "encoding_format"),
    ({"pooling": "max"}, 400, "FIELD_INVALID", "pooling"),
    ({"site": "resid_post"}, 400, "SITE_INVALID", "site"),
    ({"site": "resid_post.9"}, 400, "LAYER_OUT_OF_RANGE", "site"),
    ({"model": "other"}, 404, "MODEL_NOT_FOUND", "model"),
]


async def test_what_cannot_be_embedded_is_refused(opened: Door, subtests: Any) -> None:
    async with httpx.AsyncClient() as client:
        for fields, status, code, at in NOT_EMBEDDED:
            with subtests.test(code=code, at=at):
                body = {"model": MODEL, "input": "hello", **fields}
                content = json.dumps(body)
                answer = await client.post(f"{opened.url}embeddings", content=content)
                error = answer.json()["error"]
                told = answer.status_code, error["code"], error["param"]
                assert told == (status, code, at)


async def test_readouts_that_tell_too_much_are_refused() -> None:
    async with door(FakeEngine(width=2048)) as opened:
        readout = {"rows": {"sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 1}]}}
        with pytest.raises(openai.APIStatusError) as refused:
            await opened.chat("a" * 200, extra={"readouts": [readout]})
    assert refused.value.status_code == 413
    assert refused.value.body["code"] == "MESSAGE_TOO_LARGE"  # type: ignore[index]


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


REFUSED: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "beams": ({"use_beam_search": True}, 400, "FEATURE_NOT_SERVED", "use_beam_search"),
    "echo": ({"echo": True}, 400, "FEATURE_NOT_SERVED", "echo"),
    "log probabilities of the prompt": (
        {"prompt_logprobs": 1},
        400,
        "FEATURE_NOT_SERVED",
        "prompt_logprobs",
    ),
    "log probabilities of the prompt's own tokens": (
        {"prompt_logprobs": 0},
        400,
        "FEATURE_NOT_SERVED",
        "prompt_logprobs",
    ),
    "tokens that are held back from monitors": (
        {"stream_interval": 1000},
        400,
        "FEATURE_NOT_SERVED",
        "stream_interval",
    ),
    "what the worker is told": (
        {"vllm_xargs": {"actserve": "x"}},
        400,
        "FEATURE_NOT_SERVED",
        "vllm_xargs",
    ),
    "a salt": ({"cache_salt": "x"}, 400, "FEATURE_NOT_SERVED", "cache_salt"),
    "a template's argument that the server sets": (
        {"chat_template_kwargs": {"tokenize": False}},
        400,
        "FIELD_INVALID",
        "chat_template_kwargs",
    ),
    "many messages": (
        {"messages": [{"role": "user", "content": "a"}] * 4097},
        400,
        "TOO_MANY_PARTS",
        "messages",
    ),
    "many parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 4096}]},
        400,
        "TOO_MANY_PARTS",
        "messages",
    ),
    "an image": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        400,
        "FEATURE_NOT_SERVED",
        "messages[0].content[0]",
    ),
    "an image without its type": (
        {"messages": [{"role": "user", "content": [{"image_url": "file:///etc/passwd"}]}]},
        400,
        "FEATURE_NOT_SERVED",
        "messages[0].content[0]",
    ),
    "too many samples": ({"n": 65}, 400, "TOO_MANY_SAMPLES", "n"),
    "too many samples, as text": ({"n": "65"}, 400, "FIELD_INVALID", "n"),
    "too many samples, as another number": ({"n": 65.0}, 400, "FIELD_INVALID", "n"),
    "long patterns, as text": (
        {"repetition_detection": {"max_pattern_size": "100000", "min_count": 2}},
        400,
        "FIELD_INVALID",
        "repetition_detection.max_pattern_size",
    ),
    "too many stops": ({"stop": ["a"] * 129}, 400, "FIELD_INVALID", "stop"),
    "a long stop": ({"stop": "a" * 1025}, 400, "FIELD_INVALID", "stop"),
    "a long expression": (
        {"structured_outputs": {"regex": "(a?b?)" * 120}},
        400,
        "FIELD_INVALID",
        "structured_outputs",
    ),
    "an expression of what no text has": (
        {"structured_outputs": {"regex": "a\0b"}},
        400,
        "FIELD_INVALID",
        "structured_outputs",
    ),
    "a grammar": (
        {"structured_outputs": {"grammar": 'root ::= "a"'}},
        400,
        "FEATURE_NOT_SERVED",
        "structured_outputs",
    ),
    "a grammar in a text": (
        {
            "structured_outputs": {
                "structural_tag": '{"format": {"type": "grammar", "grammar": "root ::= root"}}'
            }
        },
        400,
        "FEATURE_NOT_SERVED",
        "structured_outputs",
    ),
    "a pattern that takes minutes": (
        {"structured_outputs": {"json": {"type": "string", "pattern": "a{1,3000}"}}},
        400,
        "FIELD_INVALID",
        "structured_outputs",
    ),
    "the same in a text": (
        {"structured_outputs": {"json": '{"type": "string", "pattern": "(a{1,99}){1,99}"}'}},
        400,
        "FIELD_INVALID",
        "structured_outputs",
    ),
    "a pattern that ends the process": (
        {"response_format": _schema({"type": "string", "pattern": "(" * 50_000 + ")" * 50_000})},
        400,
        "FIELD_INVALID",
        "response_format",
    ),
    "many patterns": (
        {"response_format": _schema({"patternProperties": {f"a{{99}}{i}": {} for i in range(99)}})},
        400,
        "FIELD_INVALID",
        "response_format",
    ),
    "a field that is nearly ours": ({"monitor": "harm"}, 400, "FIELD_UNKNOWN", "monitor"),
    "no list of steering": ({"steering": {"name": "joy"}}, 400, "FIELD_INVALID", "steering"),
    "no such vector": (
        {"steering": [{"name": "nothing"}]},
        404,
        "RESOURCE_NOT_FOUND",
        "steering[0].name",
    ),
    "a vector with what it has not": (
        {"steering": [{"name": "joy", "layer": 1}]},
        400,
        "FIELD_INVALID",
        "steering[0].layer",
    ),
    "no site": (
        {"steering": [{"name": "joy", "sites": ["resid.x"]}]},
        400,
        "SITE_INVALID",
        "steering[0].sites[0]",
    ),
    "an unknown field of an intervention": (
        {"steering": [{"unknown": 1}]},
        400,
        "FIELD_INVALID",
        "steering[0].unknown",
    ),
    "an intervention at no site": (
        {"steering": [{"zero": {}}]},
        400,
        "FIELD_REQUIRED",
        "steering[0].sites",
    ),
    "a feature of no dictionary": (
        {"steering": [{"add": {"vector": {"feature": {}}}}]},
        400,
        "FIELD_REQUIRED",
        "steering[0].add.vector.feature.dictionary",
    ),
    "no such monitor": ({"monitors": ["nobody"]}, 404, "RESOURCE_NOT_FOUND", "monitors[0]"),
    "no name of a monitor": ({"monitors": [1]}, 400, "FIELD_INVALID", "monitors[0]"),
    "an unknown detail": ({"score_detail": "ALL"}, 400, "FIELD_INVALID", "score_detail"),
    "a readout of nothing": ({"readouts": [{}]}, 400, "FIELD_REQUIRED", "readouts[0]"),
    "a long user": ({"user": "a" * 300}, 400, "FIELD_INVALID", "user"),
    "positions as they are in Python": (
        {"steering": [{"name": "joy", "positions": "generated"}]},
        400,
        "FIELD_INVALID",
        "steering[0].positions",
    ),
    "a coefficient that is none": (
        {"steering": [{"name": "joy", "coefficient": "much"}]},
        400,
        "FIELD_INVALID",
        "steering[0].coefficient",
    ),
    "a coefficient that is no number": (
        {"steering": [{"name": "joy", "coefficient": "NaN", "sites": ["resid_post.1"]}]},
        400,
        "FIELD_INVALID",
        "steering[0].coefficient",
    ),
    "a layer that is not there, of a vector": (
        {"steering": [{"name": "joy", "sites": ["resid_post.1", "resid_post.99"]}]},
        400,
        "LAYER_OUT_OF_RANGE",
        "steering[0].sites[1]",
    ),
    "a vector that is not there, at a site": (
        {"steering": [{"name": "nothing", "sites": ["resid_post.1"]}]},
        404,
        "RESOURCE_NOT_FOUND",
        "steering[0].name",
    ),
    "a hook point that is none, in camel case": (
        {"steering": [{"sites": [{"hookPoint": "X"}], "zero": {}}]},
        400,
        "FIELD_INVALID",
        "steering[0].sites[0].hookPoint",
    ),
    "two operations": (
        {"steering": [{}, {"zero": {}, "mean": {}}]},
        400,
        "FIELD_INVALID",
        "steering[1]",
    ),
    "a detail by a name that is nearly ours": (
        {"score_details": "SCORE_DETAIL_TOKEN"},
        400,
        "FIELD_UNKNOWN",
        "score_details",
    ),
    "a field in camel case": ({"scoreDetail": 1}, 400, "FIELD_UNKNOWN", "scoreDetail"),
    "a position beyond the prompt": (
        {
            "steering": [
                {
                    "sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 1}],
                    "zero": {},
                    "positions": {"list": {"positions": [99]}},
                }
            ]
        },
        400,
        "POSITION_OUT_OF_RANGE",
        "steering[0].positions",
    ),
}


async def test_what_is_not_served_so_is_refused(opened: Door, subtests: Any) -> None:
    await opened.served.vectors.CreateSteeringVector(vectors.create("joy"))
    for name, (fields, status, code, at) in REFUSED.items():
        for streams in (False, True):
            with subtests.test(name, streams=streams):
                with pytest.raises(openai.APIStatusError) as refused:
                    await opened.chat(stream=streams, extra=fields)
                error: Any = refused.value.body
                told = refused.value.status_code, error["code"], error["param"]
                assert told == (status, code, at)
                assert error["request_id"] == refused.value.response.headers["x-request-id"]


async def test_positions_as_they_are_in_python_are_told_how_to_be_written(opened: Door) -> None:
    steering = [{"name": "joy", "positions": "generated"}]
    with pytest.raises(openai.BadRequestError, match="'generated' is no object") as refused:
        await opened.chat(extra={"steering": steering})
    assert '{"generated": {}}' in refused.value.body["message"]  # type: ignore[index]


async def test_what_vllm_refuses_is_refused_in_its_words(opened: Door) -> None:
    refused_so: list[tuple[dict[str, Any], int, str]] = [
        ({"temperature": -1}, 400, "temperature"),
        ({"messages": "hello"}, 400, "messages"),
        ({"model": "other"}, 404, "`other` does not exist"),
        ({"tools": [], "tool_choice": "auto"}, 400, "tools"),
    ]
    for fields, status, said in refused_so:
        with pytest.raises(openai.APIStatusError) as refused:
            await opened.chat(**fields)
        assert refused.value.status_code == status
        assert said in str(refused.value)


async def test_tokens_roles_and_tenants_are_those_of_every_call(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("reads", "acme", Role.READER),
        ("tries", "acme", Role.EXPERIMENTER),
        ("other", "other", Role.EXPERIMENTER),
    )
    change = as_json(**addition(numbers(WIDTH)))
    async with door(token_file=tokens) as opened:
        await opened.served.vectors.CreateSteeringVector(
            vectors.create("joy"), metadata=bearing("tries")
        )

        async def status(token: str, **extra: Any) -> int:
            client = opened.as_caller(token)
            try:
                await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "hello"}],
                    max_tokens=1,
                    extra_body=extra,
                )
            except openai.APIStatusError as error:
                return error.status_code
            return 200

        assert await status("unknown") == 401
        with pytest.raises(openai.AuthenticationError):
            await opened.as_caller("unknown").models.list()
        both = [*bearing("reads"), *bearing("other")]
        async with httpx.AsyncClient(headers=both) as caller:
            assert (await caller.get(f"{opened.url}models")).status_code == 401
        assert await status("reads") == 200
        assert await status("reads", steering=[change]) == 403
        assert await status("tries", steering=[change]) == 200
        assert await status("tries", steering=[{"name": "joy"}]) == 200
        assert await status("other", steering=[{"name": "joy"}]) == 404


async def test_a_full_server_says_when_to_try_again() -> None:
    engine = FakeEngine(token_delay_s=0.05)
    async with door(engine, max_running=1, max_queue=0) as opened:
        running = asyncio.create_task(opened.chat(max_tokens=100))
        await eventually(lambda: bool(engine.counters.running), within_s=10)
        for streams in (False, True):
            with pytest.raises(openai.RateLimitError) as refused:
                await opened.chat(stream=streams)
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.body["code"] == "QUEUE_FULL"  # type: ignore[index]
        running.cancel()


async def test_a_request_counts_among_the_calls_of_all_doors_until_it_ends() -> None:
    engine = FakeEngine()
    async with door(engine, max_calls=1) as opened:
        ends: list[dict[str, Any]] = [{}, {"n": -1}, {"user": "a" * 300}]
        for fields in ends:
            with suppress(openai.BadRequestError):
                await opened.chat(**fields)
        engine._delay_s = 0.05
        running = asyncio.create_task(opened.chat(max_tokens=100))
        await eventually(lambda: bool(engine.counters.running), within_s=10)
        with pytest.raises(openai.RateLimitError):
            await opened.chat()
        refused = await failure(opened.served.generation.Generate(generate()))
        assert refused.reason == "QUEUE_FULL"
        running.cancel()


async def test_a_server_that_shuts_down_says_so(opened: Door) -> None:
    opened.served.app.engine.drain()
    with pytest.raises(openai.APIStatusError) as refused:
        await opened.chat()
    assert refused.value.status_code == 503
    assert refused.value.body["code"] == "DRAINING"  # type: ignore[index]


async def test_another_engine_in_the_place_of_a_dead_one_is_served(opened: Door) -> None:
    before = await opened.chat()
    restarting: Any = opened.served.app._restarting
    first, restarting._current = restarting._current, None
    with pytest.raises(openai.APIStatusError) as refused:
        await opened.chat()
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.body["code"] == "ENGINE_DEAD"  # type: ignore[index]
    first.vllm.renderer.shutdown()
    restarting._current = with_vllm(FakeEngine())
    after = await opened.chat()
    assert after.choices[0].token_ids == before.choices[0].token_ids


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "cut": (b"{", "REQUEST_MALFORMED"),
    "a list": (b"[1]", "REQUEST_MALFORMED"),
    "no UTF-8": (b'{"user": "\xff"}', "REQUEST_MALFORMED"),
    "half a surrogate pair": (b'{"user": "\\ud800"}', "REQUEST_MALFORMED"),
    "half a surrogate pair in ours": (b'{"monitors": ["\\ud800"]}', "REQUEST_MALFORMED"),
    "a number too long to write": (
        b'{"prompt": ["a", "a"], "n": ' + b"9" * 4300 + b"}",
        "TOO_MANY_SAMPLES",
    ),
    "very deep": (b"[" * 200_000, "TOO_MANY_PARTS"),
    "deep": (b"[" * 5_000, "REQUEST_MALFORMED"),
    "many": (b'{"messages": [' + b"{}," * 60_000 + b"{}]}", "TOO_MANY_PARTS"),
    "long": (b'{"prompt": "' + b"a" * (2 << 20) + b'"}', "PROMPT_TOO_LONG"),
}


async def test_bodies_that_nobody_should_read_are_refused(opened: Door, subtests: Any) -> None:
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(headers=headers) as client:
        for name, (body, code) in UNREADABLE.items():
            with subtests.test(name):
                answer = await client.post(f"{opened.url}chat/completions", content=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_other_paths_and_methods_are_named(opened: Door) -> None:
    async with httpx.AsyncClient() as client:
        for method, path in (
            ("GET", "chat/completions"),
            ("POST", "chat/completions/batch"),
            ("POST", "responses"),
            ("POST", "load_lora_adapter"),
        ):
            answer = await client.request(method, f"{opened.url}{path}")
            assert answer.status_code == 404
            assert "POST /v1/chat/completions" in answer.json()["error"]["message"]


async def test_a_client_that_goes_frees_its_run(opened: Door) -> None:
    engine = opened.served.engine
    engine._delay_s = 0.02
    stream = await opened.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=1000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    await anext(aiter(stream))
    assert engine.counters.running
    await stream.close()
    whole = asyncio.create_task(opened.chat(max_tokens=1000, extra={"ignore_eos": True}))
    counters = engine.counters
    await eventually(lambda: counters.started == 2 and len(counters.running) == 1, within_s=10)
    whole.cancel()
    await eventually(lambda: not counters.running, within_s=10)


async def test_a_client_that_goes_ends_its_embedding(
    opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(embeddings, "answer", endless)
    asking = asyncio.create_task(opened.client.embeddings.create(model=MODEL, input="hello"))
    async with asyncio.timeout(10):
        await begun.wait()
        asking.cancel()
        await ended.wait()


async def test_an_error_in_the_middle_of_a_stream_is_told_in_it(
    opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.served.engine.faults.incomplete = True
    readout = {"rows": {"sites": [{"hook_point": "HOOK_POINT_RESID_POST", "layer": 1}]}}
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    logging.getLogger("vllm").addHandler(handler)
    with pytest.raises(openai.APIError, match="1 row of the capture was lost") as failed:
        await opened.stream(extra={"readouts": [readout]})
    logging.getLogger("vllm").removeHandler(handler)
    assert failed.value.code == "CAPTURE_INCOMPLETE"
    assert not [each for each in heard if each.levelno >= logging.ERROR], "its line is the call's"
    with pytest.raises(openai.InternalServerError, match="1 row"):
        await opened.chat(extra={"readouts": [readout]})


async def test_what_nobody_foresaw_is_told_without_words(
    opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(opened.served.engine, "_captured", broken)
    for streams in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            await opened.chat(stream=streams)
        assert "secret" not in json.dumps(failed.value.body)
        assert failed.value.body["request_id"]  # type: ignore[index]


async def test_a_request_is_counted_and_logged_without_its_words(
    opened: Door, logged: list[dict[str, Any]]
) -> None:
    labels = {"path": "/v1/chat/completions"}

    def counted(status: str) -> float:
        found = REGISTRY.get_sample_value(
            "actserve_http_requests_total", {**labels, "status": status}
        )
        return found or 0.0

    before = counted("200"), counted("404")
    answer = await opened.chat("secret")
    with pytest.raises(openai.NotFoundError):
        await opened.chat("secret", extra={"monitors": ["nobody"]})
    assert (counted("200"), counted("404")) == (before[0] + 1, before[1] + 1)
    good, bad = (each for each in logged if each["event"] == "call")
    assert good["request_id"] == answer.actserve["request_id"]
    assert (good["method"], good["status"], good["code"]) == (labels["path"], 200, "OK")
    assert good["prompt_tokens"] == len(answer.prompt_token_ids)
    assert good["output_tokens"] == 5
    assert (bad["status"], bad["code"], bad["reason"]) == (404, "NOT_FOUND", "RESOURCE_NOT_FOUND")
    assert "secret" not in str(logged)


@pytest.mark.parametrize("option", ["tool_call_parser", "reasoning_parser"])
async def test_a_parser_that_vllm_does_not_know_ends_the_start(option: str) -> None:
    settings: dict[str, Any] = {option: "nothing"}
    with pytest.raises(ConfigError, match=f"{option}.*nothing"):
        async with door(**settings):
            pass


async def test_a_server_without_a_model_of_vllm_says_that_it_has_no_such_door() -> None:
    async with serving(http_port=0) as served:
        assert served.app.http is not None
        url = f"http://127.0.0.1:{served.app.http.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            asked: list[Any] = [
                client.models.list(),
                client.completions.create(model="", prompt=""),
            ]
            for each in asked:
                with pytest.raises(
                    openai.BadRequestError, match=r"fake engine.*--model"
                ) as refused:
                    await each
                assert refused.value.body["code"] == "FEATURE_NOT_SERVED"  # type: ignore[index]
