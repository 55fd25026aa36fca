"""A call that names kept rows goes to the server that keeps them: a header names it for proxies,
and a client that is told where replicas are goes there itself."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve import _channel
from actserve._replicas import replica_of
from actserve.errors import from_rpc
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2 as kept_pb

from .fake_server import Model

KEPT = "keptActivations/pod-1.x7_-Q"
ROWS = actserve.KeptRows(KEPT)
SITE = "resid_post.1"
CALLS: dict[str, Callable[[Any], Any]] = {
    "changed": lambda c: c.generate("a", intervene=actserve.Replace(SITE, ROWS)),
    "of an item": lambda c: c.fetch(["a"], SITE, intervene=[[actserve.Replace(SITE, ROWS)]]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_names_kept_rows_says_who_keeps_them(
    client: Any, model: Model, call: Callable[[Any], Any]
) -> None:
    call(client)
    assert model.metadata[-1]["actserve-replica"] == "pod-1"
    client.generate("a", intervene=actserve.Add(SITE, np.ones(4)))
    assert "actserve-replica" not in model.metadata[-1]


@pytest.mark.parametrize(
    ("name", "replica"),
    [
        (KEPT, "pod-1"),
        ("keptActivations/10.0.0.7.x7", "10.0.0.7"),
        ("keptActivations/x7", ""),
        ("keptActivations/pod 1.x7", ""),
        ("keptActivations/pod-1.x\n7", "pod-1"),
        ("keptActivations/evil.example/.x7", ""),
        ("models/a/steeringVectors/pod.x", ""),
        ("", ""),
    ],
)
def test_the_name_says_which_replica_and_nothing_else_does(name: str, replica: str) -> None:
    assert replica_of(kept_pb.GetKeptActivationsRequest(name=name)) == replica
    assert replica_of(kept_pb.DeleteKeptActivationsRequest(name=name)) == replica
    assert replica_of(pb.GenerateRequest(model=name)) == ""


def connection(**options: Any) -> _channel.Connection:
    given = {"model": None, "tls": None, "token": None, "timeout": None, "metadata": None}
    return _channel.Connection.of("host:1", **{**given, "concurrency": 1, **options})


def test_a_client_that_knows_where_replicas_are_goes_there_itself() -> None:
    named = kept_pb.GetKeptActivationsRequest(name=KEPT)
    other = kept_pb.ListKeptActivationsRequest()
    led = connection(replica_target="{replica}.actserve.example.com")
    assert led.target_of(named) == "pod-1.actserve.example.com:50051"
    assert led.target_of(other) == "host:1"
    dotted = kept_pb.GetKeptActivationsRequest(name="keptActivations/pod-1.other.x7")
    assert led.target_of(dotted) == "host:1"
    assert connection().target_of(named) == "host:1"


def test_made_up_replicas_open_no_channels_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_channel.Connection, "open", lambda _, flavour, at: FakeChannel(at))
    channels = _channel.Channels(connection(), grpc)
    channels.stub("host:1", "GetModel")
    for number in range(1000):
        channels.stub(f"r{number}.example.com:1", "GetModel")
    opened = [each.at for each in channels.opened()]
    assert len(opened) == _channel.MAX_CHANNELS
    assert opened[0] == "host:1"
    # The client's own stays, and those that are there go on.
    assert channels.stub("host:1", "GetModel") == channels.stub("r999.example.com:1", "GetModel")
    assert channels.stub("r1.example.com:1", "GetModel") == "r1.example.com:1"


class FakeChannel:
    """Of which every method is where it leads."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.unary_unary = self.unary_stream = self.stream_unary = lambda *_, **__: at
        self.stream_stream = self.unary_unary


def test_each_target_has_one_channel_which_is_closed_with_the_client(
    target: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(self: _channel.Connection, flavour: Any, at: str) -> Any:
        opened.append(at)
        return flavour.insecure_channel(target)

    monkeypatch.setattr(_channel.Connection, "open", opening)
    with actserve.Client("host:1", replica_target="{replica}.example.com:7") as client:
        for _ in range(2):
            client.generate("a")
            client.generate("a", intervene=actserve.Replace(SITE, ROWS))
    assert opened == ["host:1", "pod-1.example.com:7"]
    with pytest.raises(actserve.Cancelled):
        client.generate("a", intervene=actserve.Replace(SITE, ROWS))


@pytest.mark.parametrize(
    "given",
    ["{replica}:50051", "{replica}", "{replica}.com", "host:1", "a.{replica}.example.com", "", 7],
)
def test_a_name_of_kept_rows_leads_into_one_domain_alone(given: Any) -> None:
    """Names may come from anybody, and the token goes where they lead."""
    with pytest.raises(actserve.InvalidRequest) as caught:
        connection(replica_target=given)
    assert caught.value.field == "replica_target"


def test_a_token_goes_to_no_replica_in_plaintext() -> None:
    with pytest.raises(actserve.InvalidRequest, match=r"would go to .* in plaintext"):
        actserve.Client("localhost:1", token="x", replica_target="{replica}.example.com")


class Cut(grpc.RpcError):
    """What gRPC raises for a stream that a proxy has ended."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        self.code, self.details = (lambda: code), (lambda: words)
        self.trailing_metadata = lambda: ()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNKNOWN, "Stream removed (Data frame with END_STREAM flag received)"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_a_stream_that_a_proxy_has_ended_was_cut_short(code: Any, words: str) -> None:
    assert isinstance(from_rpc(Cut(code, words), "host:1"), actserve.StreamCutShort)
    other = from_rpc(Cut(code, "something else"), "host:1")
    assert not isinstance(other, actserve.Unavailable)
