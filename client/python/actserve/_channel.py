"""The channel: how a client reaches its server, the same for sync and asyncio."""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import ip_address
from types import ModuleType
from typing import Any, Literal
from urllib.parse import quote

import grpc
from google.protobuf.descriptor_pb2 import MethodOptions

from actserve._checks import described
from actserve._explain_jobs import ExplainJobs
from actserve._extras import needed
from actserve._fetch_jobs import FetchJobs
from actserve._generate_jobs import GenerateJobs
from actserve._reconstruct_jobs import ReconstructJobs
from actserve._replicas import HEADER as REPLICA_HEADER
from actserve._replicas import replica_of
from actserve._traces import Headers, attempt
from actserve._weight_jobs import WeightJobs
from actserve.errors import InvalidRequest
from actserve.v1 import (
    attribution_graph_service_pb2,
    attribution_graph_service_pb2_grpc,
    dictionary_service_pb2,
    dictionary_service_pb2_grpc,
    explanation_service_pb2,
    explanation_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    head_service_pb2,
    head_service_pb2_grpc,
    kept_activations_service_pb2,
    kept_activations_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    monitor_service_pb2,
    monitor_service_pb2_grpc,
    steering_vector_service_pb2,
    steering_vector_service_pb2_grpc,
    sweep_service_pb2,
    sweep_service_pb2_grpc,
    weight_service_pb2,
    weight_service_pb2_grpc,
)

DEFAULT_PORT = 50051
DEFAULT_TARGET = f"localhost:{DEFAULT_PORT}"
DEFAULT_CONCURRENCY = 32
DEFAULT_TIMEOUT_S = 600.0
MODEL_HEADER = "x-actserve-model"

_SERVICES = {
    dictionary_service_pb2.DESCRIPTOR.services_by_name["DictionaryService"]: (
        dictionary_service_pb2_grpc.DictionaryServiceStub
    ),
    generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"]: (
        generation_service_pb2_grpc.GenerationServiceStub
    ),
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]: (
        model_service_pb2_grpc.ModelServiceStub
    ),
    kept_activations_service_pb2.DESCRIPTOR.services_by_name["KeptActivationsService"]: (
        kept_activations_service_pb2_grpc.KeptActivationsServiceStub
    ),
    head_service_pb2.DESCRIPTOR.services_by_name["HeadService"]: (
        head_service_pb2_grpc.HeadServiceStub
    ),
    explanation_service_pb2.DESCRIPTOR.services_by_name["ExplanationService"]: (
        explanation_service_pb2_grpc.ExplanationServiceStub
    ),
    monitor_service_pb2.DESCRIPTOR.services_by_name["MonitorService"]: (
        monitor_service_pb2_grpc.MonitorServiceStub
    ),
    steering_vector_service_pb2.DESCRIPTOR.services_by_name["SteeringVectorService"]: (
        steering_vector_service_pb2_grpc.SteeringVectorServiceStub
    ),
    sweep_service_pb2.DESCRIPTOR.services_by_name["SweepService"]: (
        sweep_service_pb2_grpc.SweepServiceStub
    ),
    weight_service_pb2.DESCRIPTOR.services_by_name["WeightService"]: (
        weight_service_pb2_grpc.WeightServiceStub
    ),
    attribution_graph_service_pb2.DESCRIPTOR.services_by_name["AttributionGraphService"]: (
        attribution_graph_service_pb2_grpc.AttributionGraphServiceStub
    ),
}

_FULL_NAMES = {
    method.name: f"{service.full_name}/{method.name}"
    for service in _SERVICES
    for method in service.methods
}

HARMLESS = frozenset(
    method.name
    for service in _SERVICES
    for method in service.methods
    if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
)
"""The methods that the contract says may run twice: those that are made again when there is no
server."""


def channel_options() -> list[tuple[str, str | int]]:
    return [
        # A name with many addresses is many replicas; gRPC's default would use only one.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.enable_retries", 0),  # `Retries` has ours.
        ("grpc.primary_user_agent", f"actserve-python/{version('actserve')}"),
        # A server that vanished without closing the connection would never be noticed while a
        # call waits for its first row.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # gRPC stops pinging after two pings without data, and a long prefill is just that.
        ("grpc.http2.max_pings_without_data", 0),
        # Where a server was gone for long gRPC would look for it every two minutes only.
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # No receive limit is set: no message of the contract comes near gRPC's 4 MiB.
    ]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Everything a client was configured with, checked."""

    target: str
    model: str
    """Resource name, or empty for the only one."""
    fetch_jobs: FetchJobs
    generate_jobs: GenerateJobs
    explain_jobs: ExplainJobs
    reconstruct_jobs: ReconstructJobs
    weight_jobs: WeightJobs
    timeout: float | None
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...] = field(repr=False)  # It may hold the token.
    traces: bool = False
    """Whether each attempt at a call is a span of OpenTelemetry."""
    replica_target: str = ""
    """Where each replica is, with `{replica}` in place of its name; empty where a proxy knows."""

    @staticmethod
    def of(
        target: str | Sequence[str],
        *,
        model: str | None,
        tls: bool | grpc.ChannelCredentials | None,
        token: str | None,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
        concurrency: int,
        plaintext_token: bool = False,
        traces: bool = False,
        replica_target: str | None = None,
    ) -> "Connection":
        target = checked_target(target)
        at_replica = "" if replica_target is None else _checked_replica_target(replica_target)
        if not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidRequest(
                f"concurrency is {concurrency!r}; it must be a whole number of at least 1",
                reason="FIELD_INVALID",
                path=("concurrency",),
            )
        headers = dict(metadata or {})
        if token is not None:
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise InvalidRequest(
                    "the token is not a text of printable ASCII characters; take away line breaks "
                    "around it",
                    reason="FIELD_INVALID",
                    path=("token",),
                )
            headers["authorization"] = f"Bearer {token}"
        if traces:
            needed("opentelemetry.trace", "spans of calls")
        credentials = grpc.ssl_channel_credentials() if tls is True else (tls or None)
        for each in (target, at_replica) if credentials is None and not plaintext_token else ():
            if each and not is_local(each):
                _check_no_token(each, headers)
        return Connection(
            target=target,
            model=model_name(model),
            fetch_jobs=FetchJobs(model_name(model), concurrency),
            generate_jobs=GenerateJobs(model_name(model), concurrency),
            explain_jobs=ExplainJobs(model_name(model), concurrency),
            reconstruct_jobs=ReconstructJobs(model_name(model), concurrency),
            weight_jobs=WeightJobs(model_name(model)),
            timeout=timeout,
            credentials=credentials,
            metadata=tuple(headers.items()),
            traces=traces,
            replica_target=at_replica,
        )

    def headers(self, request: Any) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: what was configured and, for proxies to route by, the model if
        one is named, and the replica that keeps the rows that the request names."""
        match request:
            case (
                model_service_pb2.ListModelsRequest()
                | explanation_service_pb2.ListNlasRequest(parent="models/-")
            ):
                model = ""  # Of no model, or of all.
            case explanation_service_pb2.ListNlasRequest():
                model = request.parent
            case model_service_pb2.GetModelRequest():
                model = request.name
            case _:
                model = self.model
        named = ((MODEL_HEADER, quote(model)),) if model else ()
        replica = replica_of(request)
        kept_there = ((REPLICA_HEADER, replica),) if replica else ()
        return (*self.metadata, *named, *kept_there)

    @contextmanager
    def attempt(self, method: str, request: Any) -> Iterator[Headers]:
        """The metadata of an attempt at a call, which is a span while the block runs where the
        client was told to make spans."""
        with attempt(_FULL_NAMES[method], makes_span=self.traces) as trace:
            yield (*self.headers(request), *trace)

    def target_of(self, request: Any) -> str:
        """Where a call goes. The name of a replica is one label, so that it leads to no place but
        those right before the domain that was given."""
        replica = replica_of(request) if self.replica_target else ""
        if not replica or "." in replica:
            return self.target
        return self.replica_target.replace(_REPLICA, replica)

    def open(self, grpc_flavour: ModuleType, target: str) -> Any:
        """A channel of `grpc` or `grpc.aio`."""
        options = channel_options()
        if is_local(target):
            # A proxy that the environment names would get what is to stay on this machine.
            options.append(("grpc.enable_http_proxy", 0))
        if self.credentials is None:
            return grpc_flavour.insecure_channel(target, options=options)
        return grpc_flavour.secure_channel(target, self.credentials, options=options)


def checked_target(target: Any) -> str:
    """A target that gRPC takes; a host alone gets the port that servers have by default, and
    several addresses become one target. Raises `InvalidRequest`."""
    if isinstance(target, Sequence) and not isinstance(target, str) and target:
        return checked_target(target[0]) if len(target) == 1 else _several(target)
    if not isinstance(target, str) or not target or "//" in target.partition("://")[0]:
        raise InvalidRequest(
            f"{target!r} is not a target; give host:port", reason="FIELD_INVALID", path=("target",)
        )
    if target.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"{target!r} is a web address; give host:port alone, and tls=True for TLS",
            reason="FIELD_INVALID",
            path=("target",),
        )
    return f"{target}:{DEFAULT_PORT}" if re.fullmatch(r"[A-Za-z0-9._-]+", target) else target


_REPLICA = "{replica}"


def _checked_replica_target(target: Any) -> str:
    """Raises `InvalidRequest` unless it leads into one domain, whatever a replica is called: names
    of kept rows may come from anybody, and the token goes where they say."""
    if isinstance(target, str) and _REPLICA_TARGET.fullmatch(target):
        return target if ":" in target else f"{target}:{DEFAULT_PORT}"
    raise InvalidRequest(
        f"{described(target)} is not where replicas are; give a name in a domain of yours, such as "
        "'{replica}.actserve.example.com:50051'",
        reason="FIELD_INVALID",
        path=("replica_target",),
    )


_REPLICA_TARGET = re.compile(r"\{replica\}(\.[A-Za-z0-9-]+){2,}(:[0-9]{1,5})?")
"""With two labels at least: what comes before one alone, such as `com`, is anybody's."""


def _several(targets: Sequence[Any]) -> str:
    found = [_ADDRESS.match(each) if isinstance(each, str) else None for each in targets]
    for kind in (4, 6):
        if all(match and _ip_version(match[1] or match[2]) == kind for match in found):
            return f"ipv{kind}:{','.join(targets)}"
    raise InvalidRequest(
        f"{described(targets)} are not addresses of one kind; give IP addresses with their ports, "
        "such as ['10.0.0.1:50051', '10.0.0.2:50051'], or one name that has all of them",
        reason="FIELD_INVALID",
        path=("target",),
    )


def _ip_version(host: str) -> int | None:
    try:
        return ip_address(host).version
    except ValueError:
        return None


_ADDRESS = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):[0-9]{1,5}$")


def is_local(target: str) -> bool:
    """Whether all that is sent to a gRPC target stays on this machine, as far as its name tells."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    address = target
    if scheme in ("dns", "ipv4", "ipv6", "passthrough"):
        # An authority, as in dns://server/name, is asked what a name means.
        address = rest.removeprefix("///")
    if "/" in address:
        return False
    return all(_is_loopback(_HOST.sub(r"\1\2", each)) for each in address.split(","))


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_ip_version(host) is not None and ip_address(host).is_loopback)


_HOST = re.compile(r"^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$")


def _check_no_token(target: str, headers: Mapping[str, str]) -> None:
    if any(key.lower() == "authorization" for key in headers):
        raise InvalidRequest(
            f"the token would go to {target} in plaintext, where everyone on the way can read it; "
            "give tls=True, or a channel's credentials, or plaintext_token=True where the way is "
            "safe, such as a tunnel",
            reason="FIELD_INVALID",
            path=("token",),
        )


def model_name(model: str | None) -> str:
    """The resource name of a model id; empty for None, which is the only model."""
    if not model:
        return ""
    return model if model.startswith("models/") else f"models/{model}"


STREAMING = frozenset(
    method.name for service in _SERVICES for method in service.methods if method.server_streaming
)
"""The methods that answer with a stream."""


def check_method(name: str, request: Any, answer: Literal["message", "stream", "pages"]) -> None:
    """Raises `InvalidRequest` unless a service has the method, it answers so, and it takes the
    request."""
    methods = {
        method.name: method
        for service in _SERVICES
        for method in service.methods
        if answer in _answers(method)
    }
    if name not in methods:
        raise InvalidRequest(
            f"{described(name)} is no method that answers with {answer}; those are "
            f"{', '.join(sorted(methods))}",
            reason="FIELD_INVALID",
            path=("method",),
        )
    if getattr(request, "DESCRIPTOR", None) is not methods[name].input_type:
        raise InvalidRequest(
            f"{name} takes {methods[name].input_type.name}, and was given {described(request)}",
            reason="FIELD_INVALID",
            path=("request",),
        )


def _answers(method: Any) -> Sequence[str]:
    if method.server_streaming:
        return ("stream",)
    paged = "page_token" in method.input_type.fields_by_name
    return ("message", "pages") if paged else ("message",)


def stubs(channel: Any) -> dict[str, Any]:
    """Every method of every service on one channel, by name."""
    return {
        method.name: getattr(stub, method.name)
        for service, make in _SERVICES.items()
        for stub in [make(channel)]
        for method in service.methods
    }


MAX_CHANNELS = 64


class Channels:
    """Those of one client, each opened when something is first called there; safe to share between
    threads."""

    def __init__(self, connection: Connection, grpc_flavour: ModuleType) -> None:
        self._connection = connection
        self._flavour = grpc_flavour
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[Any, dict[str, Any]]] = {}
        """The channel to each target, and every method there."""

    def stub(self, target: str, method: str) -> Any:
        """A method at a target; at the client's own where there are channels to `MAX_CHANNELS`
        others, since names of replicas may come from anybody."""
        with self._lock:
            if target not in self._opened and len(self._opened) >= MAX_CHANNELS:
                target = self._connection.target
            if target not in self._opened:
                channel = self._connection.open(self._flavour, target)
                self._opened[target] = channel, stubs(channel)
            return self._opened[target][1][method]

    def opened(self) -> list[Any]:
        """Those that are to be closed."""
        with self._lock:
            return [channel for channel, _ in self._opened.values()]
