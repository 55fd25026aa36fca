"""Another actserve server, and how it is called on behalf of a call here."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actserve.paths import parse_path
from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import explanation_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc
from actserve_server import traces
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.admission import RETRY_AFTER_S
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.rpc.transport.auth import TENANT
from actserve_server.rpc.transport.calls import Call
from actserve_server.rpc.transport.statuses import DOMAIN

_OF_THIS_SERVER = (Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED)
"""Refusals of this server's own token, for which no caller can do anything."""

_OPTIONS = [
    # A server that vanished without closing the connection would never be noticed while a call
    # waits for its first explanation.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class OtherServer:
    """A channel to it, with the token that it wants."""

    def __init__(self, source: NlaSource) -> None:
        self.address = source.address
        parts = urlsplit(source.address)
        if parts.scheme == "grpcs":
            roots = source.ca.read_bytes() if source.ca else None
            credentials = grpc.ssl_channel_credentials(roots)
            self._channel = grpc.aio.secure_channel(parts.netloc, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(parts.netloc, options=_OPTIONS)
        token = _read_token(source.token_file) if source.token_file else None
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._stub = explanation_service_pb2_grpc.ExplanationServiceStub(self._channel)
        self.max_request_bytes = 0
        """Known once it has told its NLAs."""

    def call(self, request: Message, call: Call) -> Any:
        """Calls the method that takes such a request, in the trace of `call`. Without a deadline:
        when that of `call` expires, this is cancelled."""
        method = getattr(self._stub, request.DESCRIPTOR.name.removesuffix("Request"))
        trace = traces.headers(call.traceparent)
        return method(request, metadata=(*self._metadata_for(call.principal.tenant), *trace))

    def _metadata_for(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """Of a call on behalf of a tenant."""
        return (*self._metadata, (TENANT, tenant.lstrip("/"))) if tenant else self._metadata

    async def nlas(self, timeout_s: float) -> list[pb.Nla]:
        """All that it has, as the tenant of the token sees them; waits so long for it to start.
        Raises AioRpcError."""
        models = await model_service_pb2_grpc.ModelServiceStub(self._channel).ListModels(
            model_service_pb2.ListModelsRequest(),
            metadata=self._metadata,
            timeout=timeout_s,
            wait_for_ready=True,
        )
        self.max_request_bytes = min(each.limits.max_request_bytes for each in models.models)
        found = await self._stub.ListNlas(
            pb.ListNlasRequest(page_size=1000), metadata=self._metadata, timeout=timeout_s
        )
        return list(found.nlas)

    async def nla(self, name: str, timeout_s: float, tenant: str) -> pb.Nla:
        """One that it has, as a tenant sees it. Raises AioRpcError."""
        request = pb.GetNlaRequest(name=name)
        metadata = self._metadata_for(tenant)
        return (await self._stub.GetNla(request, metadata=metadata, timeout=timeout_s)).nla

    async def close(self) -> None:
        await self._channel.close()

    def told(self, error: grpc.aio.AioRpcError) -> ActserveError:
        """The other server's error as ours."""
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        invalid = error_details_pb2.BadRequest()
        # AioRpcError lacks the call interface that from_call asks for, but has its methods.
        status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
        for detail in status.details if status else ():
            _ = any(map(detail.Unpack, (info, retry, invalid)))
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.domain:
            return ActserveError(  # Of gRPC itself, which never hands such a message over.
                Reason.MESSAGE_TOO_LARGE,
                f"the server that holds this NLA takes {self.max_request_bytes} bytes in one "
                "message; send fewer rows or texts at once",
                metadata={"limit": self.max_request_bytes},
            )
        if info.domain != DOMAIN or info.reason in _OF_THIS_SERVER:
            return self._unreachable(error)
        violation = next(iter(invalid.field_violations), None)
        known = info.reason in Reason.__members__  # Else of a newer server.
        if info.reason == Reason.INTERNAL.name:
            return ActserveError(
                Reason.INTERNAL,
                f"the server that holds this NLA failed: {error.details()}",
                metadata=dict(info.metadata),
            )
        return ActserveError(
            Reason[info.reason] if known else Reason.INTERNAL,
            (violation and violation.description) or error.details() or info.reason,
            field=parse_path(violation.field) if violation else (),
            metadata=dict(info.metadata),
            retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 or None,
        )

    def _unreachable(self, error: grpc.aio.AioRpcError) -> ActserveError:
        return ActserveError(
            Reason.NLA_UNREACHABLE,
            f"{self.address}, which holds this NLA, cannot answer ({error.code().name}: "
            f"{error.details()}); try again in {RETRY_AFTER_S:g} s, or have it looked at",
            field=("nla",),
            metadata={"address": self.address},
            retry_after_s=RETRY_AFTER_S,
        )


def _read_token(path: Path) -> str:
    lines = path.read_text().split(maxsplit=1)
    if not lines:
        raise ValueError(f"{path} holds no token; write it into its first line")
    return lines[0]
