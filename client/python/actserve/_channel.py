"""The channel: how a client reaches its server, the same for sync and asyncio."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.descriptor_pb2 import MethodOptions

from actserve._explain_jobs import ExplainJobs
from actserve._fetch_jobs import FetchJobs
from actserve._generate_jobs import GenerateJobs
from actserve._reconstruct_jobs import ReconstructJobs
from actserve._weight_jobs import WeightJobs
from actserve.errors import InvalidRequest
from actserve.v1 import (
    explanation_service_pb2,
    explanation_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    kept_activations_service_pb2,
    kept_activations_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    weight_service_pb2,
    weight_service_pb2_grpc,
)

DEFAULT_PORT = 50051
DEFAULT_TARGET = f"localhost:{DEFAULT_PORT}"
DEFAULT_CONCURRENCY = 32
MODEL_HEADER = "x-actserve-model"

_SERVICES = {
    generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"]: (
        generation_service_pb2_grpc.GenerationServiceStub
    ),
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]: (
        model_service_pb2_grpc.ModelServiceStub
    ),
    kept_activations_service_pb2.DESCRIPTOR.services_by_name["KeptActivationsService"]: (
        kept_activations_service_pb2_grpc.KeptActivationsServiceStub
    ),
    explanation_service_pb2.DESCRIPTOR.services_by_name["ExplanationService"]: (
        explanation_service_pb2_grpc.ExplanationServiceStub
    ),
    weight_service_pb2.DESCRIPTOR.services_by_name["WeightService"]: (
        weight_service_pb2_grpc.WeightServiceStub
    ),
}

# Four attempts over about three seconds: enough for a server that restarts or is briefly full,
# soon enough for a person who mistyped the address.
RETRY_POLICY: dict[str, Any] = {
    "maxAttempts": 4,
    "initialBackoff": "0.25s",
    "maxBackoff": "3s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def backoff(attempt: int, told: float | None) -> float | None:
    """How many seconds to wait before a call that broke off is made again after this many such
    attempts, or as long as the server has told; None if it was tried often enough."""
    if attempt >= RETRY_POLICY["maxAttempts"] - 1:
        return None
    first, most = (
        float(RETRY_POLICY[name].removesuffix("s")) for name in ("initialBackoff", "maxBackoff")
    )
    if told is not None and told > _MAX_PAUSE_S:
        return None  # Too long to wait without a word; the error says when.
    return told or min(first * RETRY_POLICY["backoffMultiplier"] ** attempt, most)


_MAX_PAUSE_S = 30.0
"""For as long as this a server may tell a call to wait before it is made again."""


def service_config() -> dict[str, Any]:
    """The gRPC service config: which methods are retried, and how calls are spread.

    A method is retried if the contract says that running it twice does no harm. gRPC retries only
    until the first response arrives, so a caller never sees an event twice.
    """
    harmless = [
        {"service": service.full_name, "method": method.name}
        for service in _SERVICES
        for method in service.methods
        if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
    ]
    return {
        "methodConfig": [{"name": harmless, "retryPolicy": RETRY_POLICY}],
        # A name with many addresses is many replicas; gRPC's default would use only one.
        "loadBalancingConfig": [{"round_robin": {}}],
    }


def channel_options() -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", json.dumps(service_config())),
        # A request beyond this buffer (256 KiB by default, a few steering vectors) is not retried.
        ("grpc.per_rpc_retry_buffer_size", 64 << 20),
        # A server that vanished without closing the connection would never be noticed while a
        # call waits for its first row.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # gRPC stops pinging after two pings without data, and a long prefill is just that.
        ("grpc.http2.max_pings_without_data", 0),
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

    @staticmethod
    def of(
        target: str,
        *,
        model: str | None,
        tls: bool | grpc.ChannelCredentials | None,
        token: str | None,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
        concurrency: int,
        plaintext_token: bool = False,
    ) -> "Connection":
        target = checked_target(target)
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
        credentials = grpc.ssl_channel_credentials() if tls is True else (tls or None)
        if credentials is None and not plaintext_token and not is_local(target):
            _check_no_token(target, headers)
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
        )

    def headers(self, request: Any) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: what was configured and, for proxies to route by, the model if
        one is named."""
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
        return (*self.metadata, (MODEL_HEADER, quote(model))) if model else self.metadata

    def open(self, grpc_flavour: ModuleType) -> Any:
        """A channel of `grpc` or `grpc.aio`."""
        options = channel_options()
        if is_local(self.target):
            # A proxy that the environment names would get what is to stay on this machine.
            options.append(("grpc.enable_http_proxy", 0))
        if self.credentials is None:
            return grpc_flavour.insecure_channel(self.target, options=options)
        return grpc_flavour.secure_channel(self.target, self.credentials, options=options)


def checked_target(target: Any) -> str:
    """A target that gRPC takes; a host alone gets the port that servers have by default. Raises
    `InvalidRequest`."""
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
    return all(_HOST.sub(r"\1\2", each) in _LOOPBACK for each in address.split(","))


_HOST = re.compile(r"^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


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


def stubs(channel: Any) -> dict[str, Any]:
    """Every method of every service on one channel, by name."""
    return {
        method.name: getattr(stub, method.name)
        for service, make in _SERVICES.items()
        for stub in [make(channel)]
        for method in service.methods
    }
