"""Over Connect and gRPC-Web a call is answered as over gRPC, in every form."""

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from actserve.v1 import kept_activations_service_pb2 as kept
from actserve.v1 import model_service_pb2 as models
from actserve.v1 import monitor_service_pb2 as monitors
from actserve.v1 import steering_vector_service_pb2 as vectors
from actserve.v1 import sweep_service_pb2 as sweeps
from actserve.v1 import weight_service_pb2 as weights
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.server import DESCRIPTORS
from actserve_server.rpc.web.json_messages import MAX_JSON_BYTES
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    kinds,
    serving,
    site,
    unpack,
    write_tokens,
)
from tests.contract.test_flow import ENDLESS, everything_is_free, slow, unread
from tests.contract.vectors import create
from tests.contract.web_channel import EOF, FORMS, WebChannel

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in DESCRIPTORS
    for method in service.methods
}
ONE_OF_EACH = ("connect+json", "grpc-web+proto")
"""Forms of either protocol and either codec."""
MODEL = "models/fake"
VARYING = {
    "call_id",
    "etag",
    "create_time",
    "update_time",
    "expire_time",
    "next_page_token",
    "resume_token",
    "usage",
}
"""Fields that are others in each call."""

VALID: list[tuple[str, Message]] = [
    ("ModelService/ListModels", models.ListModelsRequest()),
    ("ModelService/GetModel", models.GetModelRequest(name=MODEL)),
    ("ModelService/GetModel", models.GetModelRequest(name="models/other")),
    ("ModelService/Tokenize", models.TokenizeRequest(prompt={"text": "grüße \u2028\n\0"})),
    ("GenerationService/FetchActivations", fetch("one", "two")),
    ("GenerationService/FetchActivations", fetch("x" * 3000)),
    ("GenerationService/FetchActivations", fetch("a", capture={"sites": [site(9)]})),
    (
        "GenerationService/Generate",
        generate(capture={"sites": [site()]}, interventions=[addition(np.ones(16))]),
    ),
    ("SteeringVectorService/CreateSteeringVector", create()),
    ("SteeringVectorService/CreateSteeringVector", create(request_id="another")),
    ("SteeringVectorService/ListSteeringVectors", vectors.ListSteeringVectorsRequest()),
    ("MonitorService/ListMonitors", monitors.ListMonitorsRequest()),
    ("KeptActivationsService/ListKeptActivations", kept.ListKeptActivationsRequest()),
    (
        "WeightService/ReadTokenRows",
        weights.ReadTokenRowsRequest(matrix="TOKEN_MATRIX_UNEMBEDDING", token_ids=[1, 2]),
    ),
    (
        "SweepService/RunSweep",
        sweeps.RunSweepRequest(
            prompts=[{"prompt": {"text": "one"}}],
            variants=[{}],
            sampling={"max_tokens": 3, "temperature": 0},
        ),
    ),
]

Outcome = list[Any]


@asynccontextmanager
async def web(served: Served, form: str, **options: Any) -> AsyncIterator[Served]:
    """The server, called over its HTTP port."""
    assert served.app.http is not None
    async with WebChannel(served.app.http.port, form, **options) as channel:
        yield replace(served, channel=channel)  # pyright: ignore[reportArgumentType]


def call(served: Served, path: str, request: Any, **options: Any) -> Any:
    """A call by the stub that a generated client has."""
    method = METHODS[path]
    name = "unary_stream" if method.server_streaming else "unary_unary"
    kind = message_factory.GetMessageClass(method.output_type)
    stub = getattr(served.channel, name)(path, type(request).SerializeToString, kind.FromString)
    return stub(request, **options)


async def outcome(served: Served, path: str, request: Any, **options: Any) -> Outcome:
    """What a client is told of a call, but for what is another in each call."""
    told: Outcome = []
    try:
        answer = call(served, path, request, **options)
        if METHODS[path].server_streaming:
            while (event := await answer.read()) is not EOF:
                told.append(event)
        else:
            told.append(await answer)
    except grpc.aio.AioRpcError as error:
        failed = unpack(error)
        assert len(failed.details.pop("RequestInfo").request_id) == 32
        told.append(failed)
    for each in told:
        if isinstance(each, Message):
            settle(each)
    return told


def settle(message: Message) -> None:
    """Clears what is another in each call."""
    for field, value in message.ListFields():
        if field.name in VARYING:
            message.ClearField(field.name)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                settle(each)


def empty(method: MethodDescriptor) -> Message:
    return message_factory.GetMessageClass(method.input_type)()


async def outcomes(served: Served) -> list[tuple[str, Outcome]]:
    """Of an empty request of every method of the contract, and of the valid ones in turn."""
    tried = [(path, empty(method)) for path, method in METHODS.items() if "Watch" not in path]
    tried += [(f"/actserve.v1.{path}", request) for path, request in VALID]
    return [(path, await outcome(served, path, request)) for path, request in tried]


@pytest.fixture(scope="module")
def over_grpc() -> list[tuple[str, Outcome]]:
    async def told() -> list[tuple[str, Outcome]]:
        async with serving() as served:
            return await outcomes(served)

    return asyncio.run(told())


@pytest.mark.parametrize("form", FORMS)
async def test_every_method_answers_as_over_grpc(
    form: str, over_grpc: list[tuple[str, Outcome]]
) -> None:
    async with serving(http_port=0) as served, web(served, form) as called:
        over_web = await outcomes(called)
    assert [path for path, _ in over_web] == [path for path, _ in over_grpc]
    for (path, wanted), (_, told) in zip(over_grpc, over_web, strict=True):
        assert told == wanted, path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("reader", "vision", Role.READER),
        ("experimenter", "vision", Role.EXPERIMENTER),
    )


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_nothing_is_open_without_a_token(form: str, token_file: Path) -> None:
    async with serving(http_port=0, token_file=token_file) as served, web(served, form) as called:
        for path, method in METHODS.items():
            for metadata in ((), bearing("unknown"), (("authorization", "Basic reader"),)):
                refused = await failure(call(called, path, empty(method), metadata=metadata))
                assert refused.code is grpc.StatusCode.UNAUTHENTICATED
                assert refused.reason == "UNAUTHENTICATED"
        assert served.engine.counters.started == 0


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_a_token_counts_as_it_does_over_grpc(form: str, token_file: Path) -> None:
    request = vectors.DeleteSteeringVectorRequest(name=f"{MODEL}/steeringVectors/joy")
    async with serving(http_port=0, token_file=token_file) as served, web(served, form) as called:
        for token in ("reader", "experimenter"):
            path = "/actserve.v1.SteeringVectorService/DeleteSteeringVector"
            told = await outcome(called, path, request, metadata=bearing(token))
            assert told == await outcome(served, path, request, metadata=bearing(token))
        events = await collect(called.generation.Generate(generate(), metadata=bearing("reader")))
    assert kinds(events)[-1] == "finished"


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_a_call_has_an_id_one_log_line_and_its_limit(form: str, token_file: Path) -> None:
    async with serving(http_port=0, max_calls=1) as served, web(served, form) as called:
        with capture_logs() as lines:
            stream: Any = called.generation.Generate(generate())
            await collect(stream)
        (line,) = [line for line in lines if line["event"] == "call"]
        assert line["method"] == "/actserve.v1.GenerationService/Generate"
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert line["code"] == "OK"
        assert stream.trailers["x-request-id"] == line["request_id"]
        running: Any = called.generation.Generate(generate(sampling={"max_tokens": 1500}))
        await running.read()
        refused = await failure(called.models.ListModels(models.ListModelsRequest()))
        assert refused.reason == "QUEUE_FULL"
        assert refused.details["RetryInfo"].retry_delay.seconds == 1
        running.cancel()


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_a_header_of_another_model_is_refused(form: str) -> None:
    metadata = (("x-actserve-model", "models/other"),)
    async with serving(http_port=0) as served, web(served, form) as called:
        refused = await failure(called.generation.Generate(generate(), metadata=metadata))
    assert refused.reason == "MODEL_MISMATCH"


@pytest.mark.parametrize("form", ONE_OF_EACH)
@pytest.mark.parametrize("read", [0, 2])
async def test_a_client_that_leaves_frees_its_runs(form: str, read: int) -> None:
    async with serving(slow(), http_port=0) as served, web(served, form) as called:
        request = generate(sampling={**ENDLESS, "samples": 3}, capture={"sites": [site()]})
        stream: Any = called.generation.Generate(request)
        reading = asyncio.create_task(_read(stream, 1 + read))
        await reading
        await eventually(lambda: served.app.engine.reserved_bytes > 0)
        with capture_logs() as lines:
            stream.cancel()
            await eventually(lambda: everything_is_free(served), within_s=2)
            await eventually(lambda: any(line["event"] == "call" for line in lines))
    assert [line["code"] for line in lines if line["event"] == "call"] == ["CANCELLED"]


async def _read(stream: Any, count: int) -> None:
    for _ in range(count):
        await stream.read()


async def test_a_client_that_leaves_before_an_answer_frees_what_it_waits_for() -> None:
    async with serving(slow(5), http_port=0) as served, web(served, FORMS[0]) as called:
        request = vectors.MakeSteeringVectorRequest(
            steering_vector_id="joy",
            request_id="0123456789abcdef0123456789abcdef",
            sites=[site()],
            prompts={"positive": [{"text": "good"}] * 2, "negative": [{"text": "bad"}] * 2},
        )
        making = asyncio.create_task(call_unary(called.vectors.MakeSteeringVector(request)))
        await eventually(lambda: bool(served.engine.counters.running))
        making.cancel()
        await eventually(lambda: everything_is_free(served), within_s=2)


async def call_unary(answer: Any) -> Any:
    return await answer


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_a_deadline_ends_a_call(form: str) -> None:
    async with serving(slow(), http_port=0) as served, web(served, form) as called:
        with capture_logs() as lines:
            endless = generate(sampling=ENDLESS)
            late = await failure(called.generation.Generate(endless, timeout=0.2))
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: everything_is_free(served), within_s=1)
            await eventually(lambda: any(line["event"] == "call" for line in lines))
    assert [line["code"] for line in lines if line["event"] == "call"] == ["DEADLINE_EXCEEDED"]


@pytest.mark.parametrize("form", ["connect+proto", "grpc-web+proto"])
async def test_a_reader_that_stops_is_ended_and_bounds_what_is_queued(form: str) -> None:
    fake = FakeEngine(width=8192, rows_per_event=16)
    options = {"http_port": 0, "max_running": 2, "reader_timeout_s": 2}
    async with serving(fake, **options) as served, web(served, form) as called:
        with capture_logs() as lines:
            stalled: Any = unread(called)
            await stalled.read()
            await eventually(lambda: served.app.engine.reserved_bytes > 0)
            async with asyncio.timeout(3):
                await collect(called.generation.Generate(generate()))
            assert queued_bytes(served) < 2 << 20, "a reader that stops fills memory"
            await eventually(lambda: everything_is_free(served), within_s=20)
        stalled.cancel()
    reasons = [line["reason"] for line in lines if line["event"] == "call"]
    assert reasons == [None, "READER_STALLED"]


def queued_bytes(served: Served) -> int:
    """What waits at the transport for those who read it."""
    assert served.app.http is not None
    connections = served.app.http._state.connections
    return sum(connection.transport.get_write_buffer_size() for connection in connections)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("form", ONE_OF_EACH)
async def test_an_error_after_events_ends_the_stream_with_its_details(form: str) -> None:
    async with serving(slow(0.2), http_port=0) as served, web(served, form) as called:
        stream: Any = called.generation.FetchActivations(fetch("a", "b"))
        assert (await stream.read()).WhichOneof("event") == "started"
        served.engine.faults.incomplete = True
        assert (await failure(stream)).reason == "CAPTURE_INCOMPLETE"
        await eventually(lambda: everything_is_free(served))


async def test_draining_lets_a_call_finish_and_takes_no_more() -> None:
    async with serving(slow(0.05), http_port=0) as served, web(served, FORMS[0]) as called:
        stream: Any = called.generation.Generate(generate(sampling={"max_tokens": 20}))
        await stream.read()
        draining = asyncio.create_task(served.app.drain())
        assert kinds(await collect(stream))[-1] == "finished"
        await draining
        with pytest.raises(aiohttp.ClientConnectionError):
            await called.models.ListModels(models.ListModelsRequest())


GENERATE = "/actserve.v1.GenerationService/Generate"
TOKENIZE = "/actserve.v1.ModelService/Tokenize"


def enveloped(data: bytes, flags: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flags, len(data) if length is None else length) + data


MALFORMED = {
    "no envelope": ("application/connect+proto", b"", "REQUEST_MALFORMED"),
    "half a prefix": ("application/connect+proto", b"\0\0\0", "REQUEST_MALFORMED"),
    "half a message": ("application/connect+proto", enveloped(b"ab", 0, 9), "REQUEST_MALFORMED"),
    "flags": ("application/connect+proto", enveloped(b"", 0b100), "REQUEST_MALFORMED"),
    "compressed": ("application/connect+proto", enveloped(b"x", 1), "FEATURE_NOT_SERVED"),
    "two messages": ("application/connect+proto", enveloped(b"") * 2, "REQUEST_MALFORMED"),
    "too large": (
        "application/connect+proto",
        enveloped(b"", 0, (1 << 20) + 1),
        "MESSAGE_TOO_LARGE",
    ),
    "no message": ("application/connect+proto", enveloped(b"\xff\xff"), "REQUEST_MALFORMED"),
    "no JSON": ("application/connect+json", enveloped(b"{"), "REQUEST_MALFORMED"),
    "no UTF-8": ("application/connect+json", enveloped(b'{"\xff":1}'), "REQUEST_MALFORMED"),
    "no object": ("application/connect+json", enveloped(b"[[]]"), "REQUEST_MALFORMED"),
    "nothing": ("application/connect+json", enveloped(b""), "REQUEST_MALFORMED"),
    "deep": ("application/connect+json", enveloped(b"[" * 100_000), "REQUEST_MALFORMED"),
    "a key twice": (
        "application/connect+json",
        enveloped(b'{"prompt":{"text":"a"},"prompt":{"text":"b"}}'),
        "REQUEST_MALFORMED",
    ),
    "another type": (
        "application/connect+json",
        enveloped(b'{"prompt":{"text":[1]}}'),
        "REQUEST_MALFORMED",
    ),
    "an unknown field": (
        "application/connect+json",
        enveloped(b'{"promt":{"text":"a"}}'),
        "FIELD_UNKNOWN",
    ),
    "many parts": (
        "application/connect+json",
        enveloped(b'{"stops":[' + b"0," * 150_000 + b"0]}"),
        "TOO_MANY_PARTS",
    ),
}


@asynccontextmanager
async def posting(**settings: Any) -> AsyncIterator[tuple[Served, Any]]:
    """A server with an HTTP port, and what posts to it."""
    async with serving(http_port=0, **settings) as served, aiohttp.ClientSession() as session:
        assert served.app.http is not None
        url = f"http://127.0.0.1:{served.app.http.port}"

        def post(path: str, data: bytes = b"", content_type: str = "", **options: Any) -> Any:
            headers = {"content-type": content_type, **options.pop("headers", {})}
            return session.post(url + path, data=io.BytesIO(data), headers=headers, **options)

        yield served, post


async def test_what_is_no_request_is_refused_with_a_reason() -> None:
    async with posting(max_request_bytes=1 << 20) as (served, post):
        for name, (content_type, body, reason) in MALFORMED.items():
            with capture_logs() as lines:
                async with post(GENERATE, body, content_type) as response:
                    assert response.status == 200, name
                    flags, length = struct.unpack(">BI", await response.content.readexactly(5))
                    end = json.loads(await response.content.readexactly(length))
            assert flags == 2, name
            assert reason_of(end["error"]) == reason, name
            (line,) = [line for line in lines if line["event"] == "call"]
            assert line["reason"] == reason, name
            assert line["request_id"] == end["metadata"]["x-request-id"][0], name
        assert served.engine.counters.started == 0


def reason_of(error: dict[str, Any]) -> str:
    packed = {each["type"]: each["value"] for each in error["details"]}["google.rpc.ErrorInfo"]
    value = base64.b64decode(packed + "=" * (-len(packed) % 4))
    return error_details_pb2.ErrorInfo.FromString(value).reason


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"\xff", "application/proto", 400, "REQUEST_MALFORMED"),
        (b"x" * ((1 << 20) + 1), "application/proto", 429, "MESSAGE_TOO_LARGE"),
        (b" " * (MAX_JSON_BYTES + 1), "application/json", 429, "MESSAGE_TOO_LARGE"),
        (b"{}", "application/json", 400, "FIELD_REQUIRED"),
    ],
    ids=["garbage", "too large", "too large for JSON", "refused"],
)
async def test_a_refused_unary_call_has_the_status_of_its_code(
    body: bytes, content_type: str, status: int, reason: str
) -> None:
    limit = MAX_JSON_BYTES + (content_type == "application/json")
    async with (
        posting(max_request_bytes=limit) as (_, post),
        post(TOKENIZE, body, content_type) as response,
    ):
        assert response.status == status
        assert response.headers["content-type"] == "application/json"
        assert response.headers["trailer-x-request-id"]
        assert reason_of(await response.json()) == reason


NOT_SERVED = [
    (TOKENIZE, "text/plain", 415),
    (TOKENIZE, "application/grpc", 415),
    (TOKENIZE, "application/grpc+proto", 415),
    (TOKENIZE, "application/grpc-web-text", 415),
    (TOKENIZE, "application/connect+json", 415),
    (GENERATE, "application/json", 415),
    ("/actserve.v1.ModelService/Nothing", "application/json", 404),
    ("/actserve.v1.", "application/json", 404),
    ("/grpc.health.v1.Health/Check", "application/json", 404),
    ("/", "application/json", 404),
]


async def test_what_is_not_served_is_refused_with_an_error_of_connect() -> None:
    async with posting() as (_, post):
        for path, content_type, status in NOT_SERVED:
            async with post(path, b"{}", content_type) as response:
                assert response.status == status, (path, content_type)
                if path.startswith("/actserve.v1."):
                    error = await response.json()
                    assert error["code"] == "unimplemented"
                    assert path in error["message"]


async def test_links_call_nothing() -> None:
    async with serving(http_port=0) as served, aiohttp.ClientSession() as session:
        assert served.app.http is not None
        query = "?encoding=json&message={}"
        url = f"http://127.0.0.1:{served.app.http.port}/actserve.v1.ModelService/ListModels"
        async with session.get(url + query) as response:
            assert response.status == 405
            assert response.headers["allow"] == "POST"
            assert "by POST alone" in (await response.json())["message"]


async def test_the_bytes_of_a_large_answer_in_json_are_those_of_the_message() -> None:
    async with serving(FakeEngine(width=512), http_port=0) as served:
        wanted = await collect(served.generation.FetchActivations(fetch("x" * 300)))
        async with web(served, "connect+json") as called:
            told = await collect(called.generation.FetchActivations(fetch("x" * 300)))
    assert told[1:] == wanted[1:]
