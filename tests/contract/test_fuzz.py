"""Whatever is sent, a call ends within a bound with an answer or a stated refusal, and nothing of
it is left.

`make fuzz` tries 50,000 requests, and looks whether memory grows; here it is 2,000. The requests
are the same every time: a failure shows again.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import message_factory, text_format
from google.protobuf.message import Message
from google.rpc import status_pb2
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from actserve.v1 import kept_activations_service_pb2 as kept_pb
from actserve_server.domain.principals import Role
from actserve_server.rpc.server import DESCRIPTORS
from tests.contract import vectors
from tests.contract.fuzzed_requests import Names, Requests
from tests.contract.harness import Served, eventually, serving, unpack, write_tokens
from tests.contract.nlas import Tiny
from tests.contract.test_access_matrix import LANGUAGE, VISION, never, things
from tests.contract.test_flow import everything_is_free
from tests.contract.web_channel import CODES, EOF, WebChannel

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in DESCRIPTORS
    for method in service.methods
}
CASES = int(os.environ.get("FUZZ_CASES", "2000"))
ROUNDS = max(1, CASES // 2000)
EACH = -(-CASES // ROUNDS // len(METHODS))
"""Requests of a method in a round."""
BOUND_S = 30.0
"""A call that takes longer hangs, also on a busy machine."""
READ = 300
"""Answers of a stream that are read before it is left."""
ENDLESS = frozenset({"/actserve.v1.MonitorService/WatchAlerts"})
LEFT_AFTER_S = 0.1
"""Of these streams, which say nothing while nothing happens."""
OUR_FAULT = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
)
INSIDE = ("Traceback", 'File "', ".py", " at 0x", "object at")
"""What a caller is not told. A checksum is told, and may begin as an address of memory does."""
WARM_UP = 5
"""Rounds in which caches and pools fill up."""
MAX_GROWTH_BYTES = 32 << 20
"""After them: that of an allocator, of as many rounds again and more."""
NOBODYS = frozenset({grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED})
"""Codes of refusals that gRPC and Connect make themselves, without a reason."""

ROOM = {
    "max_dictionary_bytes": 1 << 20,
    "dictionary_memory_bytes": 1 << 20,
    "max_dictionaries": 40,
    "max_kept_bytes": 4 << 20,
    "max_steering_vectors": 40,
    "max_monitors": 40,
    "max_graphs": 40,
    "max_alerts": 200,
}

pytestmark = pytest.mark.timeout(BOUND_S * 20)


@dataclass(frozen=True)
class Fuzzed:
    """A server with something of everything, and a loop to call it on."""

    runner: asyncio.Runner
    served: Served
    web: WebChannel
    names: Names

    def run(self, call: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(BOUND_S):
                return await call

        return self.runner.run(bounded())


@asynccontextmanager
async def something_of_everything(
    token_file: Path,
) -> AsyncIterator[tuple[Served, WebChannel, Names]]:
    """A server with things of two tenants, and the names by which one of them may try all."""
    write_tokens(
        token_file,
        ("of-vision", "vision", Role.OPERATOR),
        ("of-language", "language", Role.OPERATOR),
    )
    options = {"token_file": token_file, "http_port": 0, **ROOM}
    async with serving(None, Tiny().loaded(), **options) as served:
        there = await things(served)
        others = await served.vectors.CreateSteeringVector(vectors.create("x"), metadata=LANGUAGE)
        names = {
            kind: (name, name, name, never(name), others.steering_vector.name)
            for kind, name in there.items()
        }
        assert served.app.http is not None
        async with WebChannel(served.app.http.port, "connect+json") as web:
            yield served, web, {**names, "nla": (Tiny().name, Tiny().name, "")}


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[Fuzzed]:
    with asyncio.Runner() as runner:
        context = something_of_everything(tmp_path / "tokens.yaml")
        served, web, names = runner.run(context.__aenter__())
        try:
            yield Fuzzed(runner, served, web, names)
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def memory() -> list[int]:
    """Bytes after each round."""
    return []


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_a_call_ends_with_an_answer_or_a_stated_refusal(
    fuzzed: Fuzzed, memory: list[int], turn: int, path: str
) -> None:
    @seed(turn)
    @settings(
        max_examples=EACH,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # A request that fails is shown; it does not become simpler.
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.randoms(use_true_random=True))
    def tried(random: Random) -> None:
        fuzzed.run(try_one(fuzzed, path, random))

    tried()
    fuzzed.run(nothing_is_left(fuzzed.served))
    if path == [*METHODS][-1]:
        memory.append(psutil.Process().memory_info().rss)


@pytest.mark.skipif(ROUNDS < 2 * WARM_UP, reason="`make fuzz` tells")
def test_memory_does_not_grow(memory: list[int]) -> None:
    print([each >> 20 for each in memory], "MiB after each round")
    assert memory[-1] < memory[WARM_UP] + MAX_GROWTH_BYTES


async def try_one(fuzzed: Fuzzed, path: str, random: Random) -> None:
    """Makes one call, and looks at all that it is told."""
    requests = Requests(random, fuzzed.names)
    request = requests.message(METHODS[path].input_type)
    match random.randrange(8):
        case 0:
            channel, data = fuzzed.served.channel, requests.cut(request.SerializeToString())
        case 1 | 2:
            channel, data = fuzzed.web, requests.as_json(request)
        case _:
            channel, data = fuzzed.served.channel, request.SerializeToString()
    tried = f"{path}\n{text_format.MessageToString(request)}\n{data[:2000]!r}"
    try:
        for answer in await answers(channel, path, data):
            for status in statuses(answer):
                check(CODES[status.code], status.message, tried)
    except grpc.aio.AioRpcError as error:
        refused = unpack(error)
        check(refused.code, refused.message, tried)
        if not refused.reason and refused.code not in NOBODYS:
            pytest.fail(f"{refused} without a reason, for {tried}")


async def answers(channel: Any, path: str, data: bytes) -> list[Message]:
    """What a call is told, of a stream at least its beginning."""
    method = METHODS[path]
    kind = message_factory.GetMessageClass(method.output_type)
    if not method.server_streaming:
        call = channel.unary_unary(path, None, kind.FromString)
        return [await call(data, metadata=VISION)]
    call = channel.unary_stream(path, None, kind.FromString)(data, metadata=VISION)
    found: list[Message] = []
    try:
        async with asyncio.timeout(LEFT_AFTER_S if path in ENDLESS else None):
            while len(found) < READ and (answer := await call.read()) is not EOF:
                found.append(answer)
    except TimeoutError:
        pass
    finally:
        call.cancel()
    return found


def statuses(message: Message) -> Iterator[status_pb2.Status]:
    """Every status in an answer: of an item, a cell, or work."""
    if isinstance(message, status_pb2.Status):
        yield message
        return
    for each, value in message.ListFields():
        if each.message_type is not None and not each.message_type.GetOptions().map_entry:
            for inside in value if each.is_repeated else (value,):
                yield from statuses(inside)


def check(code: grpc.StatusCode, message: str, tried: str) -> None:
    assert code not in OUR_FAULT, (code, message, tried)
    assert not any(each in message for each in INSIDE), (message, tried)


async def nothing_is_left(served: Served) -> None:
    """Of calls that are over: no runs, calls, or memory; and of what they stored when it is
    deleted."""
    limit, work = served.app.rpc.call_limit, served.app.graphs.work
    await eventually(lambda: everything_is_free(served), BOUND_S)
    await eventually(lambda: not limit._calls, BOUND_S)
    await eventually(lambda: not work._jobs, BOUND_S)
    for metadata in (VISION, LANGUAGE):
        stub = served.kept
        kept = await stub.ListKeptActivations(
            kept_pb.ListKeptActivationsRequest(page_size=1000), metadata=metadata
        )
        for each in kept.kept_activations:
            await stub.DeleteKeptActivations(
                kept_pb.DeleteKeptActivationsRequest(name=each.name), metadata=metadata
            )
    assert served.app.kept.held_bytes == 0
    assert served.app.kept.copies.held_bytes == 0
