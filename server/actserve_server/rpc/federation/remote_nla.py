"""NLAs that other actserve servers hold.

A request goes there as it came and is checked there; the answer comes back as it is, but for what
names the call. So the two servers can never disagree about what a request means.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actserve.paths import parse_path
from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import explanation_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.engine.admission import RETRY_AFTER_S
from actserve_server.nla.gate import Gate
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.rpc.explanations import nla_descriptions
from actserve_server.rpc.explanations.local_nla import ExplainRows
from actserve_server.rpc.requests import site_fields, tensor_fields
from actserve_server.rpc.responses import chunks
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.auth import TENANT
from actserve_server.rpc.transport.calls import Call
from actserve_server.rpc.transport.statuses import DOMAIN

CONNECT_TIMEOUT_S = 60.0
"""How long a server that starts may wait for one that it takes NLAs from."""

REFRESH_TIMEOUT_S = 2.0
"""How long whoever lists models may wait for another server to describe its NLAs."""
_REST_BYTES = 64 << 10
"""At most what a request holds beside rows, their positions apart."""

_OF_THIS_SERVER = (Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED)
"""Refusals of this server's own token, for which no caller can do anything."""

_OPTIONS = [
    # A server that vanished without closing the connection would never be noticed while a call
    # waits for its first explanation.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class RemoteNla:
    """One NLA of another server."""

    def __init__(self, server: "_Server", described: pb.Nla, site: Site) -> None:
        self._server = server
        self._site = site
        self.described = described
        """As the other server describes it to all tenants."""
        self.gate = Gate()

    @property
    def id(self) -> str:
        return _id(self.described)

    @property
    def site(self) -> Site:
        return self._site

    def explain(
        self, request: pb.ExplainActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplainActivationsResponse, None]:
        return self._stream(request, call)

    @asynccontextmanager
    async def asked(
        self, spec: pb.ExplainSpec, positions: Sequence[int], call: Call
    ) -> AsyncGenerator[ExplainRows, None]:
        size, limit = 4 * self.described.width * len(positions), self._server.max_request_bytes
        if size > limit - _REST_BYTES:
            raise ActserveError(
                Reason.MESSAGE_TOO_LARGE,
                f"the rows of {len(positions)} positions are {size} bytes, but the server that "
                f"explains them takes {limit} in one message; ask for fewer positions",
                field=("positions",),
                metadata={"bytes": size, "limit": limit},
            )

        def explain(rows: np.ndarray) -> AsyncGenerator[pb.ExplainActivationsResponse, None]:
            request = pb.ExplainActivationsRequest(
                activations=chunks.tensor(rows), positions=positions, spec=spec
            )
            return self._passed_on(request, call)

        async with self.gate.call():
            yield explain

    def compare(
        self, request: pb.CompareActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.CompareActivationsResponse, None]:
        return self._stream(request, call)

    async def reconstruct(
        self, request: pb.ReconstructActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]:
        async with aclosing(self._stream(request, call)) as answers:
            async for answer in answers:
                yield answer
                call.activation_bytes += len(answer.rows.rows.data)

    async def score(
        self, request: pb.ScoreExplanationsRequest, call: Call
    ) -> pb.ScoreExplanationsResponse:
        scored = await self._ask(request, call)
        call.prompt_tokens += scored.usage.prompt_tokens
        return scored

    async def set_baseline(
        self, request: pb.SetExplanationBaselineRequest, call: Call
    ) -> pb.SetExplanationBaselineResponse:
        return await self._ask(request, call)

    @property
    def max_rows(self) -> int:
        return self.described.max_rows

    async def describe(self, tenant: str) -> pb.Nla:
        """As the other server describes it to a tenant; if that cannot be reached, as it last did
        to all."""
        described = self.described
        with suppress(grpc.aio.AioRpcError):
            found = await self._server.nlas(REFRESH_TIMEOUT_S, tenant)
            described = next((nla for nla in found if nla.name == described.name), described)
            if not tenant:
                self.described = described
        return described

    def check_reconstructs(self, what: str, field: FieldPath) -> None:
        if not self.described.reconstructs:
            raise nla_descriptions.lacking(
                self.described.name, "reconstructor", what, "reconstructs", field
            )

    async def _stream(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """The answers to a request of a method that streams, as those of `call`. Raises what the
        other server refuses with, and NLA_UNREACHABLE. Closing the stream cancels the call
        there."""
        async with self.gate.call(), aclosing(self._passed_on(request, call)) as answers:
            async for answer in answers:
                yield answer

    async def _passed_on(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """As `_stream`, of a call that was let in."""
        answers = self._server.call(self._addressed(request), call)
        try:
            async for answer in answers:
                self._note(answer, call)
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._server.told(error) from error
        finally:
            answers.cancel()

    async def _ask(self, request: Any, call: Call) -> Any:
        """The answer to a request of another method; raises as `_stream` does."""
        async with self.gate.call():
            try:
                return await self._server.call(self._addressed(request), call)
            except grpc.aio.AioRpcError as error:
                raise self._server.told(error) from error

    async def edit(self, run_id: str, original: str, edited: str, call: Call) -> np.ndarray:
        """AR(edited) - AR(original), float32 [width]; the other server gives the run its own
        id."""
        request = pb.ReconstructActivationsRequest(texts=(original, edited))
        async with aclosing(self._stream(request, call)) as answers:
            sent = [answer.rows.rows async for answer in answers if answer.HasField("rows")]
        width = self.described.width
        before, after = np.concatenate(
            [tensor_fields.matrix(e, width, "a row", ("texts",)) for e in sent]
        )
        return after - before

    async def check_health(self) -> None:
        """Says nothing: this server can serve without it, and a call that cannot be passed on is
        refused with a reason."""

    async def close(self) -> None:
        await self._server.close()

    def _addressed(self, request: Any) -> Any:
        """The request, naming what was found here: the other server may hold more."""
        if not isinstance(request, pb.SetExplanationBaselineRequest):
            request.nla = self.described.name
        request.site.CopyFrom(site_fields.to_wire(self._site))
        return request

    def _note(self, answer: Any, call: Call) -> None:
        """Makes an answer one of this server's call, and counts it."""
        match answer.WhichOneof("event"):
            case "started":
                answer.started.call_id = call.id
            case "explanation":
                metrics.EXPLANATIONS.labels(self.described.name).inc()
            case "finished":
                call.prompt_tokens += answer.finished.usage.prompt_tokens
                call.output_tokens += answer.finished.usage.output_tokens


class _Server:
    """Another server, and how it is called."""

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
        trace = (("traceparent", call.traceparent),) if call.traceparent else ()
        return method(request, metadata=(*self._metadata_for(call.principal.tenant), *trace))

    def _metadata_for(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """Of a call on behalf of a tenant."""
        return (*self._metadata, (TENANT, tenant.lstrip("/"))) if tenant else self._metadata

    async def nlas(self, timeout_s: float, tenant: str = "") -> list[pb.Nla]:
        """All that it has, as a tenant sees them; waits so long for it to start. Raises
        AioRpcError."""
        models = await model_service_pb2_grpc.ModelServiceStub(self._channel).ListModels(
            model_service_pb2.ListModelsRequest(),
            metadata=self._metadata_for(tenant),
            timeout=timeout_s,
            wait_for_ready=True,
        )
        self.max_request_bytes = min(each.limits.max_request_bytes for each in models.models)
        return [nla for model in models.models for nla in model.nlas]

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


async def connect(source: NlaSource, model: ModelInfo) -> list[RemoteNla]:
    """The NLAs of the server at an address, or the one of it that the source names.

    Raises ValueError if it cannot be reached, has none such, or has one that the served model does
    not fit; FileNotFoundError for a file of the source that is not there.
    """
    server = _Server(source)
    try:
        found = await server.nlas(CONNECT_TIMEOUT_S)
        wanted = [each for each in found if source.id in ("", _id(each))]
        if not wanted:
            names = ", ".join(each.name for each in found) or "none"
            raise ValueError(f"nla {source.address}: it has no {source.id or 'NLA'}, but {names}")
        return [RemoteNla(server, nla, _fitting(nla, model, source.address)) for nla in wanted]
    except grpc.aio.AioRpcError as error:
        await server.close()
        raise ValueError(f"nla {source.address}: {error.code().name}: {error.details()}") from error
    except BaseException:
        await server.close()
        raise


def _read_token(path: Path) -> str:
    lines = path.read_text().split(maxsplit=1)
    if not lines:
        raise ValueError(f"{path} holds no token; write it into its first line")
    return lines[0]


def _fitting(nla: pb.Nla, model: ModelInfo, address: str) -> Site:
    """Where the rows come from that the NLA explains. Raises ValueError unless it can be of the
    served model."""
    try:
        site = site_fields.site(nla.site, model, ("site",))
    except ActserveError as error:
        raise ValueError(f"nla {address}: {nla.name}: {error.message}") from error
    if nla.width != model.width:
        raise ValueError(
            f"nla {address}: {nla.name} explains rows {nla.width} wide, but {model.id} is "
            f"{model.width} wide; it was trained for {nla.base_checkpoint}"
        )
    return site


def _id(nla: pb.Nla) -> str:
    return nla.name.partition("/")[2]
