"""How the client uses its connection follows from the contract."""

import json
from typing import Any

import grpc
import pytest

import actserve
from actserve import _channel
from actserve.v1 import (
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


def test_exactly_the_methods_that_promise_idempotency_are_made_again() -> None:
    promised = {
        method.name
        for module in (
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
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().idempotency_level
    }
    assert promised == _channel.HARMLESS
    assert len(promised) == 58


def test_replicas_behind_one_name_are_all_used_and_grpc_itself_tries_nothing_again() -> None:
    options: dict[str, Any] = dict(_channel.channel_options())
    config = json.loads(options["grpc.service_config"])
    assert config == {"loadBalancingConfig": [{"round_robin": {}}]}
    assert options["grpc.enable_retries"] == 0


def test_a_server_that_was_gone_for_long_is_found_within_seconds() -> None:
    options: dict[str, Any] = dict(_channel.channel_options())
    assert options["grpc.max_reconnect_backoff_ms"] <= 5_000


@pytest.mark.parametrize(
    ("targets", "target"),
    [
        (["10.0.0.1:1"], "10.0.0.1:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[fe80::1]:1", "[fe80::2]:2"], "ipv6:[fe80::1]:1,[fe80::2]:2"),
    ],
)
def test_several_addresses_are_one_target(targets: list[str], target: str) -> None:
    assert _channel.checked_target(targets) == target


@pytest.mark.parametrize(
    "targets", [[], ["a:1", "b:2"], ["10.0.0.1:1", "[::1]:1"], ["10.0.0.1", "10.0.0.2"], [1, 2]]
)
def test_what_is_no_list_of_addresses_is_refused(targets: Any) -> None:
    with pytest.raises(actserve.InvalidRequest) as caught:
        _channel.checked_target(targets)
    assert caught.value.field == "target"


class Flavour:
    """Notes how it is asked for channels, in place of `grpc` and `grpc.aio`."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, Any]] = []

    def insecure_channel(self, target: str, options: Any) -> None:
        self.opened.append((target, None))

    def secure_channel(self, target: str, credentials: Any, options: Any) -> None:
        self.opened.append((target, credentials))


def test_tls_takes_true_or_credentials() -> None:
    flavour: Any = Flavour()
    own = grpc.ssl_channel_credentials(b"mine")
    for tls in (None, False, True, own):
        _channel.Connection.of(
            "host:1", model=None, tls=tls, token=None, timeout=None, metadata=None, concurrency=1
        ).open(flavour, "host:1")
    assert [target for target, _ in flavour.opened] == ["host:1"] * 4
    none, false, system, mine = (credentials for _, credentials in flavour.opened)
    assert none is None
    assert false is None
    assert isinstance(system, grpc.ChannelCredentials)
    assert mine is own


def test_a_concurrency_below_one_is_refused() -> None:
    with pytest.raises(actserve.InvalidRequest, match="concurrency is 0"):
        actserve.Client(concurrency=0)


LOCAL = [
    "localhost",
    "localhost:50051",
    "127.0.0.1:50051",
    "[::1]:50051",
    "dns:///localhost:50051",
    "dns:localhost:50051",
    "ipv4:127.0.0.1:50051",
    "ipv6:[::1]:50051",
    "unix:/run/actserve.sock",
    "unix:///run/actserve.sock",
    "unix-abstract:actserve",
]
REMOTE = [
    "gpu-7",
    "gpu-7:50051",
    "10.0.0.7:50051",
    "127.0.0.1.example.com:50051",
    "localhost.example.com",
    "[fe80::1]:50051",
    "dns:///gpu-7:50051",
    "dns://127.0.0.1/gpu-7:50051",
    "ipv4:127.0.0.1:50051,10.0.0.7:50051",
]
FLAVOURS = pytest.mark.parametrize("flavour", [actserve.Client, actserve.AsyncClient])


@FLAVOURS
@pytest.mark.parametrize("target", REMOTE)
@pytest.mark.parametrize(
    "token", [{"token": "secret"}, {"metadata": {"Authorization": "Bearer secret"}}], ids=str
)
async def test_a_token_in_plaintext_to_another_machine_is_refused_unless_asked_for(
    flavour: Any, target: str, token: Any
) -> None:
    with pytest.raises(actserve.InvalidRequest, match="tls=True") as caught:
        flavour(target, **token)
    assert f"to {target}" in caught.value.message
    assert "in plaintext" in caught.value.message
    assert "secret" not in str(caught.value)
    flavour(target, **token, plaintext_token=True)


@FLAVOURS
@pytest.mark.parametrize(
    ("targets", "options"),
    [(LOCAL, {"token": "secret"}), (REMOTE, {}), (REMOTE, {"token": "secret", "tls": True})],
    ids=["this machine", "no token", "TLS"],
)
async def test_nothing_else_is_refused(
    flavour: Any, targets: list[str], options: dict[str, Any]
) -> None:
    for target in targets:
        flavour(target, **options)
