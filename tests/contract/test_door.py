"""Who may call is decided before anything of a request is read: by its metadata alone."""

import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor

from actserve.v1 import (
    attribution_graph_service_pb2,
    dictionary_service_pb2,
    explanation_service_pb2,
    generation_service_pb2,
    head_service_pb2,
    kept_activations_service_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    monitor_service_pb2,
    steering_vector_service_pb2,
    sweep_service_pb2,
    weight_service_pb2,
)
from actserve_server.domain.model import Limits
from actserve_server.domain.principals import Role
from actserve_server.engine.fair_threads import CALLER
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.server import SERVICES
from actserve_server.rpc.transport import observer, request_messages
from actserve_server.rpc.transport.request_messages import MAX_PARTS
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    failure,
    generate,
    intervention,
    serving,
    tensor,
    write_tokens,
)
from tests.contract.nlas import Tiny

LARGEST_BYTES = 16 << 20
"""Parsing and walking such a message on the event loop would hold up everybody for seconds."""

METHODS = [
    method
    for file in (
        attribution_graph_service_pb2,
        dictionary_service_pb2,
        explanation_service_pb2,
        generation_service_pb2,
        head_service_pb2,
        kept_activations_service_pb2,
        model_service_pb2,
        monitor_service_pb2,
        steering_vector_service_pb2,
        sweep_service_pb2,
        weight_service_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
COMPRESSIONS = [grpc.Compression.NoCompression, grpc.Compression.Gzip]


def test_every_served_service_is_tried_here() -> None:
    assert {method.containing_service.full_name for method in METHODS} == set(SERVICES)


def largest(method: MethodDescriptor) -> bytes:
    """A message of `LARGEST_BYTES`, of as many parts as possible."""
    for field in method.input_type.fields:
        if field.type == field.TYPE_MESSAGE:
            break
    else:
        field = method.input_type.fields[0]
    part = bytes([field.number << 3 | 2, 0])
    return part * (LARGEST_BYTES // len(part))


def call(served: Served, method: MethodDescriptor, message: bytes, **options: Any) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        return served.channel.unary_stream(path)(message, **options)
    return served.channel.unary_unary(path)(message, **options)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.yaml", ("known", "vision", Role.READER))


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was read of requests."""
    read: list[object] = []

    async def receive(*arguments: Any) -> Any:
        read.append(arguments)
        return await original(*arguments)

    original = observer.receive
    monkeypatch.setattr(observer, "receive", receive)
    return read


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Where requests were taken apart."""
    threads: list[threading.Thread] = []

    def parsed(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return original(*arguments)

    original = request_messages._parsed
    monkeypatch.setattr(request_messages, "_parsed", parsed)
    return threads


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_call_without_a_token_is_refused_unread(
    method: MethodDescriptor,
    compression: grpc.Compression,
    token_file: Path,
    received: list[object],
) -> None:
    async with serving(token_file=token_file, max_request_bytes=LARGEST_BYTES) as served:
        refused = await failure(call(served, method, largest(method), compression=compression))
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED
    assert refused.reason == "UNAUTHENTICATED"
    assert received == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_call_with_a_token_is_read(
    method: MethodDescriptor, token_file: Path, received: list[object]
) -> None:
    async with serving(token_file=token_file) as served:
        refused = await failure(call(served, method, b"\xff", metadata=bearing("known")))
    assert refused.reason == "REQUEST_MALFORMED"
    assert len(received) == 1


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda kind: kind.name)
async def test_what_is_too_large_once_decompressed_is_refused(
    compression: grpc.Compression,
) -> None:
    """A few kilobytes of gzip would otherwise become gigabytes here."""
    async with serving(max_request_bytes=1 << 20) as served:
        refused = await failure(
            call(served, METHODS[0], b"\0" * (8 << 20), compression=compression)
        )
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in refused.message


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_a_message_of_too_many_parts_is_refused_off_the_event_loop(
    method: MethodDescriptor, parsing: list[threading.Thread]
) -> None:
    async with serving(max_request_bytes=LARGEST_BYTES) as served:
        refused = await failure(call(served, method, largest(method)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "TOO_MANY_PARTS"
    assert len(parsing) == 1
    assert threading.current_thread() not in parsing


async def test_a_message_of_as_many_parts_as_may_be_is_parsed_off_the_event_loop(
    parsing: list[threading.Thread],
) -> None:
    """It is parsed, and refused for what is in it: no turn has a role."""
    request = generation_service_pb2.GenerateRequest(
        prompt={"conversation": {"turns": [{}] * (MAX_PARTS - 2)}}
    )
    async with serving(FakeEngine(limits=Limits(max_sequence_tokens=MAX_PARTS))) as served:
        refused = await failure(served.generation.Generate(request))
    assert refused.details["BadRequest"].field_violations[0].field.endswith("turns[0].role")
    assert len(parsing) == 1
    assert threading.current_thread() not in parsing


async def test_ordinary_compressed_calls_are_served() -> None:
    request = model_service_pb2.TokenizeRequest(prompt={"text": "a" * 2_000})
    async with serving() as served:
        answer = await served.models.Tokenize(request, compression=grpc.Compression.Gzip)
    assert len(answer.prompt.ids) == 2_001


async def test_a_call_without_a_message_is_refused() -> None:
    path = "/actserve.v1.GenerationService/Generate"
    async with serving() as served:
        refused = await failure(served.channel.stream_unary(path)(iter(())))
    assert refused.reason == "REQUEST_MALFORMED"


LIMIT = 256
"""Tokens of a sequence."""
LONGEST = FakeEngine().info.longest_token
USER = {"role": "user", "content": "a"}
TOO_LONG: dict[str, Any] = {
    "token ids": {"token_ids": {"ids": [1] * (LIMIT + 1)}},
    "characters": {"text": "a" * (LIMIT * LONGEST + 1)},
    "turns": {"conversation": {"turns": [USER] * (LIMIT + 1)}},
    "bytes": {"conversation": {"turns": [USER], "tools": [{"json": '{"a": 1}'}] * LIMIT * 4}},
    "bytes of an argument": {
        "conversation": {"turns": [USER], "template_arguments": {"enable_thinking": "a" * 9000}}
    },
}


@pytest.mark.parametrize("prompt", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_prompt_that_must_be_too_long_is_refused_before_it_is_tokenized(
    prompt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[object] = []
    engine = FakeEngine(limits=Limits(max_sequence_tokens=LIMIT))
    monkeypatch.setattr(engine, "tokenize", tokenized.append)
    async with serving(engine, Tiny().loaded()) as served:
        for call in (
            served.models.Tokenize(model_service_pb2.TokenizeRequest(prompt=prompt)),
            served.generation.Generate(generation_service_pb2.GenerateRequest(prompt=prompt)),
            served.explanations.ExplainText(
                explanation_service_pb2.ExplainTextRequest(prompt=prompt)
            ),
        ):
            refused = await failure(call)
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
            assert (refused.reason, refused.field) == ("PROMPT_TOO_LONG", "prompt")
            assert str(LIMIT) in refused.message
    assert tokenized == []


async def test_the_longest_prompt_is_tokenized() -> None:
    engine = FakeEngine(limits=Limits(max_sequence_tokens=LIMIT))
    request = model_service_pb2.TokenizeRequest(prompt={"text": "a" * LIMIT * LONGEST})
    async with serving(engine) as served:
        assert len((await served.models.Tokenize(request)).prompt.ids) == LIMIT * LONGEST + 1


async def test_work_is_done_on_behalf_of_the_tenant_or_else_of_the_connection(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that threads are shared fairly between those who ask."""
    seen: list[str] = []
    engine = FakeEngine()

    async def tokenize(prompt: Any) -> Any:
        seen.append(CALLER.get())
        return await FakeEngine().tokenize(prompt)

    monkeypatch.setattr(engine, "tokenize", tokenize)
    request = model_service_pb2.TokenizeRequest(prompt={"text": "a"})
    async with serving(engine, token_file=token_file) as served:
        await served.models.Tokenize(request, metadata=bearing("known"))
    async with serving(engine) as served:
        await served.models.Tokenize(request)
        address = f"127.0.0.1:{served.app.port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as other:
            await model_service_pb2_grpc.ModelServiceStub(other).Tokenize(request)
    tenant, here, there = seen
    assert tenant.endswith("vision")
    assert here != there
    assert here.startswith("ipv4:127.0.0.1:")


async def test_matrices_are_decomposed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds for many of them."""
    threads: dict[str, set[threading.Thread]] = {"qr": set(), "svd": set()}

    def watched(name: str) -> Any:
        original = getattr(np.linalg, name)

        def decompose(*arguments: Any, **options: Any) -> Any:
            threads[name].add(threading.current_thread())
            return original(*arguments, **options)

        return decompose

    for name in threads:
        monkeypatch.setattr(np.linalg, name, watched(name))
    directions = tensor(np.eye(3, 16, dtype=np.float32))
    request = generate(
        interventions=[intervention(project={"directions": {"tensor": directions}})],
        sampling={"max_tokens": 3},
    )
    async with serving() as served:
        await collect(served.generation.Generate(request))
    for name, seen in threads.items():
        assert seen, name
        assert threading.current_thread() not in seen
