"""The OpenAI door on the real engine: as vLLM's own server, and as calls over gRPC."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from vllm.v1.engine.async_llm import AsyncLLM

import actserve
from actserve_server import app
from actserve_server.config import Settings
from actserve_server.domain.principals import Role
from actserve_server.openai.vllm_app import VllmServing, vllm_app
from tests.contract.harness import write_tokens
from tests.integration.harness import EngineThread, vllm_counter

MODEL = "smollm2-135m"
PARSER = "hermes"
SITE = "resid_post.12"
VECTOR = np.random.default_rng(5).normal(size=576).astype(np.float32) * 4
MESSAGES = [{"role": "user", "content": "Write one sentence about the sea."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}

CHATS: dict[str, dict[str, Any]] = {
    "plain": GREEDY,
    "log probabilities": {**GREEDY, "logprobs": True, "top_logprobs": 3},
    "a tool that must be called": {**GREEDY, "tools": [WEATHER], "tool_choice": "required"},
    "a tool by name": {
        **GREEDY,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    },
    "a strict tool by name": {
        "temperature": 0,
        "max_tokens": 60,
        "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    },
    "a tool that may be called": {**GREEDY, "tools": [WEATHER]},
    "a schema": {
        **GREEDY,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON},
        },
    },
    "a regular expression": {**GREEDY, "structured_outputs": {"regex": "(yes|no), [a-z]{3,8}"}},
    "penalties, biases and stops": {
        **GREEDY,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"260": 2.0, "284": -100},
        "min_tokens": 6,
        "stop": ["blue", "."],
        "include_stop_str_in_output": True,
    },
    "seeded samples": {"temperature": 0.9, "top_p": 0.9, "max_tokens": 12, "seed": 7, "n": 3},
    "a system, an answer and an open end": {
        **GREEDY,
        "messages": [
            {"role": "system", "content": "You are a poet."},
            {"role": "user", "content": "The sea?"},
            {"role": "assistant", "content": "The sea is"},
        ],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "return_token_ids": True,
    },
}


STREAMED = ("log probabilities", "a tool that must be called", "a schema", "seeded samples")


OWN, OTHER = "own-token", "other-token"


@dataclass(frozen=True)
class Door:
    """The door, the gRPC door beside it, also for another tenant, and vLLM's own classes before the
    same engine."""

    engine: EngineThread
    url: str
    grpc: actserve.Client
    other: actserve.Client
    stock: Any

    def ours(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"authorization": f"Bearer {OWN}"}
        with httpx.Client(base_url=self.url, timeout=300, headers=headers) as client:
            return _answer(client.post(path, json={"model": MODEL, **body}))

    def vllms(self, path: str, body: dict[str, Any]) -> Any:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(self.stock)
            async with httpx.AsyncClient(transport=transport, base_url="http://stock") as client:
                return await client.post(f"/v1/{path}", json={"model": MODEL, **body})

        return _answer(self.engine.call(post()))


def _answer(response: httpx.Response) -> Any:
    """What is answered; of a stream, its parts."""
    assert response.status_code == 200, response.text
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.json()
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.fixture(scope="module")
def door(smollm2: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    async def start() -> app.App:
        data = tmp_path_factory.mktemp("data")
        tokens = write_tokens(
            data / "tokens", (OWN, "acme", Role.EXPERIMENTER), (OTHER, "other", Role.EXPERIMENTER)
        )
        options: dict[str, Any] = {
            "port": 0,
            "http_port": 0,
            "data_dir": data,
            "token_file": tokens,
            "tenant_share": 1.0,
        }
        built = app.build(smollm2.engine, Settings(**options, tool_call_parser=PARSER))
        await built.start()
        return built

    async def stock() -> Any:
        llm: AsyncLLM = smollm2.engine.vllm
        return vllm_app(llm, MODEL, VllmServing(tool_call_parser=PARSER))

    running = smollm2.call(start())
    assert running.http is not None
    target, url = f"127.0.0.1:{running.port}", f"http://127.0.0.1:{running.http.port}/v1/"
    with actserve.Client(target, token=OWN) as own, actserve.Client(target, token=OTHER) as other:
        own.vectors.store("sea", VECTOR, SITE)
        yield Door(smollm2, url, own, other, smollm2.call(stock()))
    smollm2.call(running.drain())
    smollm2.call(running.leave())


def said(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice, with what is random or computed in another batch shape made alike."""
    message = choice.get("message", {})
    for call in message.get("tool_calls") or ():
        call["id"] = ""
    return choice


def chosen(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [said(choice) for choice in answer["choices"]]


def assert_alike(ours: Any, vllms: Any) -> None:
    """The same, but for rounding of log probabilities."""
    assert type(ours) is type(vllms)
    if isinstance(ours, dict):
        assert ours.keys() == vllms.keys()
        for name, value in ours.items():
            assert_alike(value, vllms[name])
    elif isinstance(ours, list):
        assert len(ours) == len(vllms)
        for one, other in zip(ours, vllms, strict=True):
            assert_alike(one, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(vllms, abs=1e-3)
    else:
        assert ours == vllms


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_that_of_vllms_own_server(door: Door, name: str) -> None:
    body = {"messages": MESSAGES, **CHATS[name]}
    ours, vllms = (ask("chat/completions", body) for ask in (door.ours, door.vllms))
    assert_alike(chosen(ours), chosen(vllms))
    assert_alike(ours["usage"], vllms["usage"])
    assert ours.keys() - {"actserve"} == vllms.keys()


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_chat_is_that_of_vllms_own_server(door: Door, name: str) -> None:
    body = {
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        **CHATS[name],
    }
    ours, vllms = (ask("chat/completions", body) for ask in (door.ours, door.vllms))
    assert_alike(joined(ours), joined(vllms))
    assert_alike(ours[-1]["usage"], vllms[-1]["usage"])


def joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream; how tokens are put into parts depends on who is quicker."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (each for part in parts for each in part["choices"]):
        whole = found.setdefault(choice["index"], {"text": "", "calls": "", "logprobs": []})
        delta = choice["delta"]
        whole["text"] += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            whole["calls"] += call["function"].get("name") or ""
            whole["calls"] += call["function"].get("arguments") or ""
        whole["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
        if choice.get("finish_reason"):
            whole["end"] = [choice["finish_reason"], choice.get("stop_reason")]
    return [found[index] for index in sorted(found)]


def test_completions_are_those_of_vllms_own_server(door: Door) -> None:
    for body in (
        {"prompt": "The capital of France is", **GREEDY},
        {"prompt": ["Once", "The sea"], "logprobs": 2, **GREEDY},
        {"prompt": [504, 3575, 282], "temperature": 0.8, "seed": 3, "n": 2, "max_tokens": 8},
        {"prompt": "1 2 3 4", "stop_token_ids": [216], "ignore_eos": True, **GREEDY},
    ):
        ours, vllms = (ask("completions", body) for ask in (door.ours, door.vllms))
        assert_alike(chosen(ours), chosen(vllms))
        assert_alike(ours["usage"], vllms["usage"])


def test_a_steered_and_monitored_chat_is_the_same_over_grpc(door: Door) -> None:
    probe = actserve.Probe(SITE, VECTOR / np.linalg.norm(VECTOR))
    named = actserve.Watch(named_only=True)
    door.grpc.monitors.create("tide", probe=probe, upper=actserve.Level(1e9), watch=named)
    body = {
        "temperature": 0,
        "max_tokens": 16,
        "return_token_ids": True,
        "messages": MESSAGES,
        "steering": [{"name": "sea", "coefficient": 2.0}],
        "monitors": ["tide"],
    }
    asked: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "monitors": "tide"}
    prompt, change = actserve.Conversation(MESSAGES), actserve.Add(SITE, VECTOR, 2.0)
    plain = door.grpc.generate(prompt, max_tokens=16, temperature=0.0)
    wanted = door.grpc.generate(prompt, intervene=change, scores="sample", **asked)
    answer = door.ours("chat/completions", body)
    (choice,), (told,) = answer["choices"], answer["actserve"]["choices"]
    assert answer["prompt_token_ids"] == list(wanted.prompt_token_ids)
    assert choice["token_ids"] == list(wanted.token_ids) != list(plain.token_ids)
    assert choice["message"]["content"] == wanted.text
    (receipt,), (report,) = told["interventions"], wanted.interventions
    # The second has the steered prompt from the cache.
    assert receipt["rows"] == report.rows == receipt["changed_rows"] + receipt["reused_rows"]
    (score,), expected = told["monitor_scores"], wanted.monitor_scores["tide"]
    assert score["tokens"] == expected.tokens
    assert score["score"] == pytest.approx(expected.score, abs=1e-3)
    assert score["highest_position"] == expected.highest_position

    # Stopped where its highest score among generated tokens was.
    stop = actserve.Level(0.999 * score["highest_score"], actserve.Stop())
    door.grpc.monitors.create("stops", probe=probe, upper=stop, watch=named)
    asked["monitors"] = "stops"
    stopped = door.grpc.generate(prompt, intervene=change, **asked)
    parts = door.ours("chat/completions", {**body, "monitors": ["stops"], "stream": True})
    tokens = [token for p in parts for c in p["choices"] for token in c.get("token_ids") or ()]
    assert stopped.finish_reason == "monitor"
    assert tokens == list(stopped.token_ids)
    (last,) = parts[-1]["choices"]
    assert last["finish_reason"] == "content_filter"
    assert last["stop_reason"].endswith("/stops")
    assert parts[-1]["actserve"]["choices"][0]["monitor"] == last["stop_reason"]


def test_output_keeps_its_form_where_a_monitor_steers_it(door: Door) -> None:
    """It is run again from the prompt then, with its first tokens replayed."""
    level = actserve.Level(-1e9, actserve.Add(SITE, VECTOR, 3.0))
    probe = actserve.Probe(SITE, VECTOR)
    named = actserve.Watch(named_only=True)
    door.grpc.monitors.create("turns", probe=probe, upper=level, watch=named, positions="generated")
    form = {"structured_outputs": {"regex": "[a-z]{6} [a-z]{8}[.]"}}
    body = {**GREEDY, **form, "messages": MESSAGES, "return_token_ids": True}
    (plain,) = door.ours("chat/completions", body)["choices"]
    (turned,) = door.ours("chat/completions", {**body, "monitors": ["turns"]})["choices"]
    for choice in (plain, turned):
        assert re.fullmatch(form["structured_outputs"]["regex"], choice["message"]["content"])
    assert turned["token_ids"][:2] == plain["token_ids"][:2]
    assert turned["token_ids"] != plain["token_ids"]


def test_a_strict_tool_is_called_with_arguments_of_its_form(door: Door) -> None:
    """Others with any, as by vLLM's own server; see above."""
    body = {"messages": MESSAGES, **CHATS["a strict tool by name"]}
    (choice,) = door.ours("chat/completions", body)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert list(json.loads(call["function"]["arguments"])) == ["city"]


def test_a_form_that_is_none_is_refused_and_one_that_takes_long_holds_nobody_up(door: Door) -> None:
    """vLLM's core makes its automaton beside its steps."""
    lengths = {f"p{n}": {"type": "string", "maxLength": 5000 + n} for n in range(3)}
    slow = {"type": "object", "properties": lengths, "required": [*lengths]}
    with ThreadPoolExecutor() as pool, httpx.Client(timeout=300) as client:
        path, headers = f"{door.url}chat/completions", {"authorization": f"Bearer {OWN}"}

        def status(form: dict[str, Any], **more: Any) -> int:
            body = {"model": MODEL, "messages": MESSAGES, "structured_outputs": form, **GREEDY}
            return client.post(path, json={**body, **more}, headers=headers).status_code

        for wrong in ({"regex": "("}, {"regex": "a\0"}, {"choice": []}, {"json": {"type": "x"}}):
            assert status(wrong) == 400, wrong
        slowly = pool.submit(status, {"json": slow}, max_tokens=1)
        assert door.grpc.generate("The sea", max_tokens=4, temperature=0.0).text
        assert slowly.result() == 200


def test_mixed_requests_of_both_doors_are_each_as_alone(door: Door) -> None:
    """64 at once, more than the cache has room for, beside what another tenant steers and
    leaves."""
    form = {"structured_outputs": {"regex": "[a-z]{5} [0-9]{5}"}}
    steered = {"steering": [{"name": "sea", "coefficient": 1.5, "positions": {"generated": {}}}]}
    bodies = [
        {**GREEDY, "messages": [{"role": "user", "content": f"Tell me of {what}."}], **more}
        for what in ("rain", "iron", "bread", "glass")
        for more in ({}, form, steered, {"seed": 5, "temperature": 0.8})
    ]
    texts = [f"The history of {what} begins" for what in ("salt", "paper", "silk", "coal")]
    change = actserve.Add(SITE, VECTOR, 3.0)

    def over_http(body: dict[str, Any]) -> Any:
        return chosen(door.ours("chat/completions", body))

    def over_grpc(text: str) -> Any:
        # Together these alone are more tokens than the cache holds.
        out = door.grpc.generate(text, max_tokens=96, temperature=0.0, sites=SITE)
        return out.text, out.activations[SITE]

    def noise(text: str) -> None:
        stream = door.other.stream(text, max_tokens=200, temperature=0.0, intervene=change)
        with closing(stream) as events:
            for _ in zip(range(3), events, strict=False):
                pass

    alone = [over_http(body) for body in bodies], [over_grpc(text) for text in texts]
    door.engine.forget()
    before = vllm_counter("vllm:num_preemptions_total")
    with ThreadPoolExecutor(72) as pool:
        others = [pool.submit(noise, text) for text in 2 * texts]
        http = [pool.submit(over_http, body) for body in 3 * bodies]
        grpc = [pool.submit(over_grpc, text) for text in 4 * texts]
        together = [each.result() for each in http], [each.result() for each in grpc]
        for each in others:
            each.result()
    assert vllm_counter("vllm:num_preemptions_total") > before
    assert len(http) + len(grpc) == 64
    for one, other in zip(3 * alone[0], together[0], strict=True):
        assert_alike(one, other)
    for (text, rows), (same, other_rows) in zip(4 * alone[1], together[1], strict=True):
        assert text == same
        assert np.abs(rows - other_rows).max() < 1e-2
